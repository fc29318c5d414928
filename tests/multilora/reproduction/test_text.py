"""The tables that are printed."""

from multilora.reproduction import measures, text
from multilora.tasks.example import FAMILIES

BASE = {
    "families": dict.fromkeys(FAMILIES, 0.25),
    "mean": 0.25,
    "chance": dict.fromkeys(FAMILIES, 0.125),
    "nll": {"families": dict.fromkeys(FAMILIES, 2.0), "mean": 2.0},
}


def rows_of(values):
    """Rows of methods.csv; values: method -> value of every measure by seed."""
    columns = [*measures.COMPARED, "held_k"]
    columns += [f"{by}_{family}" for by in ("score", "nll") for family in FAMILIES]
    return [
        {"method": method, "seed": seed, "k": 24, "parameters": 1234}
        | dict.fromkeys(columns, value)
        for method, of_method in values.items()
        for seed, value in enumerate(of_method)
    ]


def test_methods_have_a_line_with_mean_and_half_the_range():
    lines = text.method_tables(rows_of({"full": (0.25, 0.75), "lora": (0.5,)}), BASE).splitlines()
    thrice, twice = ["0.500", "±0.250"] * 3, ["0.500", "±0.250"] * 2
    assert lines[2].split() == ["full", "2", "1,234", *thrice, "0.5", "±0.2", *twice]
    assert lines[3].split()[:5] == ["lora", "1", "1,234", "0.500", "±0.000"]
    at = lines.index("Scores on held-out items, %:")
    scores = {line.split()[0]: line.split()[1:] for line in lines[at + 2 : at + 6]}
    assert scores["lora"] == ["50.0", "±0.0"] * 4
    assert scores["before"] == ["training", *["25.0"] * 4]
    assert scores["chance"] == ["12.5"] * 3
    assert "of the first 24" in " ".join(lines)
    at = lines.index("Loss per token of held-out answers, nats:")
    losses = {line.split()[0]: line.split()[1:] for line in lines[at + 2 :]}
    assert losses["full"] == ["0.500", "±0.250"] * 4
    assert losses["before"] == ["training", *["2.000"] * 4]


def test_runs_of_an_earlier_version_have_no_losses():
    rows = [{n: v for n, v in row.items() if n != "nll"} for row in rows_of({"lora": (0.5,)})]
    got = text.method_tables(rows, {n: v for n, v in BASE.items() if n != "nll"})
    assert "Loss" not in got
    assert got.splitlines()[-1].split() == ["chance", *["12.5"] * 3]


def test_an_undefined_measure_is_a_dash():
    rows = [row | {"gini_k": None} for row in rows_of({"expert": (0.25,)})]
    assert text.method_tables(rows, BASE).splitlines()[2].split()[-3] == "–"


def test_differences_have_one_line_per_pair():
    compared = measures.differences(rows_of({"full": (1.0, 2.0, 3.5), "lora": (0.5, 1.0, 2.0)}))
    lines = text.difference_table(compared).splitlines()
    assert "n = 3" in lines[0]
    assert lines[2].startswith("full − lora")
    assert "+1.000 [" in lines[2]
    assert lines[2].endswith("3/3")
    assert "+100.0 [" in lines[2]  # scores in points


def test_the_measures_that_matter_are_printed_whatever_the_order_of_the_rows():
    compared = measures.differences(rows_of({"full": (1.0, 2.0), "lora": (0.5, 1.0)}))
    for row in compared:
        row["mean"] = {"top_share_1_above_null": 0.125, "gini_k": 0.375}.get(row["measure"], 0.0)
    lines = text.difference_table(compared[::-1]).splitlines()
    assert [lines[1].index(heading) for heading in text.HEADINGS.values()] == sorted(
        lines[1].index(heading) for heading in text.HEADINGS.values()
    )
    means = [word for word in lines[2].split() if word.startswith("+") and "]" not in word]
    assert means == ["+0.000", "+0.125", "+0.00", "+0.375", "+0.0", "+0.000"]
    assert text.difference_table(compared) == "\n".join(lines)
    without = [row | {"mean": None} if row["measure"] == "nll" else row for row in compared]
    assert "loss" not in text.difference_table(without)
