from libs.cli.output import table


def test_a_table_has_columns_and_no_name_in_it_steers_the_terminal() -> None:
    rows = [("a\x1b[2J\n", None), ("größer", 12)]
    assert table(rows, ("NAME", "N")).splitlines() == ["NAME    N", "a?[2J?  -", "größer  12"]
