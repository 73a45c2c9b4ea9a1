import pytest

from esckit.report.source import decimals_of, flattened, interval, measured, number, p_value, plain, share, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1234567, "1,234,567"), (-3, "−3"), (0.25, "0.250"), (12.345, "12.35"), (123.45, "123.5"),
     (2.0, "2"), (0.00123, "0.00123"), (1.5e-7, "1.50e−07"), (-0.5, "−0.500"), (2.5e7 + 0.5, "2.50e+07")],
)  # fmt: skip
def test_a_number_has_the_digits_it_deserves(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [((4.0, 3.75, None), ["4.000", "3.750", "–"]), ((12.345, 0.5), ["12.35", "0.50"]), ((3, 1234.0), ["3", "1,234"]),
     ((0.002, 123.4), ["0.002", "123.400"]), ((0.0, 0.25), ["0.000", "0.250"]), ((1.5e7, 2.0), ["15,000,000", "2"]),
     ((2.5e7 + 0.5, 1.0), ["2.50e+07", "1"]), ((1e-7, 0.5), ["1.00e−07", "0.500"]), ((None,), ["–"])],
)  # fmt: skip
def test_numbers_of_one_kind_have_one_number_of_decimals(values, texts):
    assert [number(value, decimals_of(values)) for value in values] == texts


def test_shares_and_text_overlap_are_printed_as_papers_do():
    assert share(0.4153846) == "41.5 %"
    assert measured(0.4153846, "share") == "41.5 %"
    assert measured(26.1392, "0-100") == "26.14"
    assert measured(6.1, "turns") == "6.100"
    assert measured(None, "share") == "–"


def test_an_interval_stands_in_brackets_or_is_absent():
    assert interval({"low": 0.3342922, "high": 0.5013341}, "share") == "[33.4, 50.1]"
    assert interval(None, "share") == interval({}, "turns") == "–"


def test_differences_carry_their_sign():
    assert signed(0.115, "share") == "+11.5 pp"
    assert signed(-0.115, "share") == "−11.5 pp"
    assert signed(None, "share") == "–"


def test_small_p_values_are_not_printed_as_zero():
    assert (p_value(0.0363), p_value(0.00002), p_value(None)) == ("0.036", "< 0.001", "–")


def test_values_of_a_recipe_fit_on_one_line():
    assert plain({"a": [1, 2.5], "b": None, "c": True}) == "a 1, 2.500, b –, c yes"


def test_only_finite_numbers_are_flattened():
    found = flattened({"a": {"b": 1, "c": True, "d": "x"}, "e": [1], "f": float("nan"), "g": 0.5})
    assert found == {"a.b": 1, "g": 0.5}
