from services.router.simulate.command import main

main()
