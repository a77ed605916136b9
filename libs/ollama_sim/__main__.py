"""`python -m libs.ollama_sim`."""

from libs.ollama_sim.main import main

raise SystemExit(main())
