"""Plain-text tables."""

from onpolicy_sdft.runs.plain_table import format_plain_table


def test_figures_stand_to_the_right_and_words_to_the_left():
    rows = [("task", "0.438 [0.32, 0.56]", "+0.5"), ("other set", "-", "-12%")]
    assert format_plain_table(("set", "score", "change"), rows) == "\n".join(
        [
            "set                     score  change",
            "---------  ------------------  ------",
            "task       0.438 [0.32, 0.56]    +0.5",
            "other set                   -    -12%",
        ]
    )


def test_a_table_without_rows_is_its_heading():
    assert format_plain_table(("a", "bb"), []) == "a  bb\n-  --"
