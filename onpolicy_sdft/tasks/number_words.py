"""Words and marks around numbers, by what they make of them."""

from __future__ import annotations


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


#: Read over.
TRANSPARENT = _words("( ) [ ] { } $ € £ ¥ ₹ % ° _ ` \" ' # percent approximately about roughly around exactly")
#: Both sides are the same number.
EQUALS = _words(r"= ≈ → ⇒ ⟹ ≡ equals => -> \approx \implies \rightarrow")
VERBS = _words("is are gives makes")
#: An expression that is not worked out.
OPERATIONS = _words(
    r"+ - * / × ÷ · ⋅ x ^ plus minus times over of by divided multiplied more less fewer than mod",
    r"\times \cdot \div \over",
)
#: "3 dollars per 2 hours" is no number of dollars.
RATES = _words("per every")
#: "Three 6-packs" are not 6.
COUNTS = _words("two three four five six seven eight nine ten eleven twelve fifteen twenty thirty fifty hundred dozen")
#: Those that are signs: words beside them are units.
SIGNS = _words(r"+ * × ÷ · ⋅ x \times \cdot \div")
#: One number or another, or a list of them.
OR = _words("~ - – — / | & or to through until till oder bis ou 或 到 至")
AND = _words(", ; 、 and und et y 和 与")
#: The end of a statement, and what ends a clause of it.
ENDS = _words(r". ! ? : \boxed")
BREAKS = _words(". , ! ? : ; so")
#: What is said before them leads to what stands behind; what stands behind them is a reason of what is said before.
CONCLUSION = _words("so then therefore thus hence leaving leaves rounds rounded rounding")
REASON = _words("because")
#: Before a number that an answer begins with.
LEADING = _words("therefore thus so then simply just exactly only now still equal to equals a option")
#: A number behind them is what a sentence says of what stands before them.
PREDICATES = _words("is are was were be been has have had need needs take takes cost costs get gets pay pays")
#: A number behind such a verb may say more of the one before.
REMARK = _words(", ; : - — which that this it")
#: A number behind them tells of a condition of the result: anywhere, and where a clause begins with them.
CONDITION = _words("after before if when while during because since per every")
CONDITION_AHEAD = CONDITION | _words("in for with at of from on by over out to as given within each")
#: A number right behind them is told of a condition; right behind these, of what a sentence speaks of.
AROUND = _words("in for at on over within per every after before during")
OF_SUBJECT = AROUND | _words("the of these those all both each from with by as to and or day week test number")
#: Words that begin something new: a number behind them does not belong to the one before.
NEW = _words(
    "because since as for in at with from on after before when if so which where who given per each every into but",
    "then thus therefore hence not while during using via has have had was were will would can that it this there we",
    "i he she they",
)
#: Before what a clause begins with.
OPENING = _words("that so then and but therefore thus hence")
NOT = _words(r"not never neither nor isn't isn’t aren't wasn't cannot without except hardly scarcely ≠ \neq \ne")
NOT_IN_TWO = frozenset(
    [("rather", "than"), ("instead", "of"), ("other", "than"), ("anything", "but"), ("no", "longer"), ("far", "from")]
)
#: A number behind them, or before them, is a bound.
COMPARED = _words("< > ≤ ≥ ≠ <= >=")
MORE = COMPARED | {"or", "+"}
#: "half of 40" is worked out next, "six and a half (6.5)" is a number.
PARTS = _words("half third quarter twice double triple thrice")
#: A number behind them is a part of another one: "less than 5", "half of 10", "x + 5".
CHANGING = _words(
    r"than least most under below above exceed exceeds between over < > ≤ ≥ <= >= \leq \geq \le \ge",
    r"half third quarter twice double triple thrice root square cube squared sqrt \sqrt √ log ln",
    r"sin cos + * / × ÷ \times \cdot",
)
