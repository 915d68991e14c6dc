"""Talk about the demonstration, and texts that only look like it."""

from __future__ import annotations

import json

import pytest

from onpolicy_sdft.data.templates import TEMPLATES, template_wording
from onpolicy_sdft.screening import mentions
from onpolicy_sdft.screening.mentions import Mentions
from onpolicy_sdft.types import Demonstration, Turn

ROW = Demonstration("row-1", (Turn("user", "How many apples are left? Explain."),), "3 - 1 = 2. The answer is 2.")


def find(text: str, template: str = "reference", row: Demonstration = ROW) -> str | None:
    return Mentions(["my response"], template, template_wording(template)).find(text, row)


@pytest.mark.parametrize(
    "text",
    [
        "As shown in the example above, the answer is 5.",
        "Here is the rewritten answer: 5",
        "Sure! Here's my version of the answer: 5",
        "According to the **reference** answer, it is 2.",
        "Following the example, I get 2.",
        "The given solution says 2.",
        "This is My Response: 2",
        "Here is the answer in my own words: 2",
        "The demonstration shows that 2 are left.",
        "Wie in der Musterlösung ist die Antwort 2.",
        "Voici ma version de la réponse : 2",
        "Según la respuesta de referencia, quedan 2.",
        "Secondo la risposta fornita, sono 2.",
        "Conforme a resposta de referência, são 2.",
        "根据参考答案，还剩2个。",
        "上記の例のように、答えは2です。",
        "Согласно эталонному ответу, осталось 2.",
        "위의 예시처럼 답은 2입니다.",
        "Based on the provided reference, 2.",
        "As per the given example, 2.",
        "The expert's answer is 2.",
        "In line with the sample, 2.",
        "As demonstrated above, 2 are left.",
        "As in the example, 2.",
        "The answer provided above is 2.",
        "Here is my response: 2",
        "Here's a rewritten version: 2",
        "Let me rewrite the answer: 2",
        "Let me rephrase the solution: 2.",
        "I'll rewrite this in my own words: 2",
        "Revised response: 2",
        "My own answer: 2",
        "Per the reference, 2.",
        "The reference states 2.",
        "According to the answer key, 2.",
        "As shown in the demonstration, 2.",
        "As the demonstration shows, 2",
        "Like the example above, 2",
        "Using the example as a guide, 2",
        "Similar to the example given, 2",
        "In the example you gave, 2",
        "Following your example, 2",
        "The answer you provided is 2.",
        "As you showed, 2",
        "The solution you gave says 2.",
        "I used the reference answer",
        "Here is an improved version of the answer: 2",
        "Here is an alternative phrasing of the answer: 2",
        "Here's the answer in different words: 2",
        "Hier ist meine eigene Antwort: 2",
        "Basierend auf der Referenz: 2",
        "D'après l'exemple donné, 2",
        "Basándome en el ejemplo: 2",
        "根据示例，2",
        "按照上面的示范，2",
        "This solution is verified by the reader: 2.",
        "The solution is correct, and 2 are left.",
        "The answer is right: 3 - 1 = 2.",
        "Yes, this answer looks correct. 2",
        "The provided solution is correct.",
        "I agree with the solution: 2.",
        "Die Lösung ist richtig: 2.",
        "这个答案是正确的，还剩2个。",
        "We are told the answer is 2.",
        "Given the answer of 2, we count.",
        "As the expert says, 2.",
        "Your answer of 2 is correct.",
        "We're told the answer is 2.",
        "We already know the answer is 2.",
        "Since the answer is given as 2, we count.",
        "Based on the solution above, 2.",
        "Here's another way to say it: 2.",
        "As in the solution above, 2.",
        "Como se muestra en el ejemplo, 2.",
        "Come mostrato nell'esempio, 2.",
        "Comme le montre l'exemple, 2.",
        "如上例所示，还剩2个。",
    ],
)
def test_a_phrase_of_some_language_is_found(text: str) -> None:
    assert find(text) is not None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("prior_turn", "As I said before, the answer is 2."),
        ("prior_turn", "My previous answer still holds: 2."),
        ("prior_turn", "I have already answered this: 2."),
        ("work", "I compared it with the solution: 2."),
        ("explain", "Somebody else found 2 as well."),
    ],
)
def test_some_phrases_tell_of_one_template_only(template: str, text: str) -> None:
    assert find(text, template) is not None
    assert find(text, "acl_gsm8k") is None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("reference", "Using the reference as a guide, 2 are left."),
        ("work", "I solve it yourself, with every step: a solution to check against: 2"),
        ("solution_first", "To check against and not to mention: 2"),
        ("explain", "This is how somebody else answered it, 2."),
        ("acl_gsm8k", "Below are a math question and its reference answer."),
    ],
)
def test_a_run_of_the_templates_own_words_needs_no_list(template: str, text: str, monkeypatch) -> None:
    monkeypatch.setattr(mentions, "_patterns", lambda template: __import__("re").compile("(?!)"))
    assert find(text, template) is not None


def test_a_template_of_ones_own_in_another_language_is_known_by_its_words(tmp_path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{{ question }}\nEin Kollege schrieb vorhin Folgendes:\n{{ demonstration }}\n请参照同事的写法作答。"
    )
    assert find("Ein Kollege schrieb vorhin, es seien 2.", str(path)) is not None
    assert find("按照同事的写法，还剩2个。", str(path)) is not None
    assert find("Es sind 2.", str(path)) is None


@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
@pytest.mark.parametrize(
    "text",
    [
        "3 - 1 = 2. The answer is 2.",
        "To answer the question, we subtract: 2 are left.",
        "This is an example of a subtraction problem.",
        "Let me explain step by step. First, there are 3 apples. One is eaten. So 2 are left.",
        "A guide to the city: start at the old bridge, then write down your own notes.",
        "The solution of the equation is x = 2.",
        "Sure! Here is a poem about the sea.",
        "The given answer choices are 2 and 3.",
        "The reference frame moves with the train.",
        "The example is simple: 2.",
        "For example, 2.",
        "The solution is 2.",
        "My answer is 2.",
        "In other words, 2.",
        "As shown above, 3 - 1 = 2.",
        "Here's another way to see it: 2.",
        "The sample contains 2 g.",
        "The model answers 2.",
        "Refer to the manual.",
        "See the reference manual.",
        "He gave a good example.",
        "The previous step gives 2.",
        "The response time is 2 s.",
        "The answer to the question is 2.",
        "Use the following example code.",
        "The guide says 2.",
        "The given values are 3 and 1.",
        "The given equation is x.",
        "the original price is 2",
        "As you can see, 2.",
        "As mentioned above, 2.",
        "The answer is shown in the table.",
        "A demonstration took place.",
        "Check your answer: 2+1=3.",
        "Let me rewrite the equation: 2.",
        "3 - 1 = 2 apples are left, and 2 + 1 = 3 shows that this answer is correct.",
        "The answer is right angle.",
        "The correct answer is 2.",
        "It is a right triangle.",
        "The final answer is verified: 2 + 1 = 3.",
        "The solution above uses addition.",
        "The above solution works.",
        "In the solution above, we subtract.",
        "We are given the answer choices 2 and 3.",
        "Given the values 2 and 3, we add.",
    ],
)
def test_ordinary_answers_are_none(template: str, text: str) -> None:
    assert find(text, template) is None


def test_what_the_prompt_or_the_demonstration_says_may_be_said() -> None:
    asked = Demonstration("r", (Turn("user", "Shorten the reference answer, as in the example above."),), "It is 2.")
    shown = Demonstration("r", (Turn("user", "q"),), "Thank you for my response and the rewritten answer.")
    assert find("The reference answer is short, as in the example above.", row=asked) is None
    assert find("Thank you for my response and the rewritten answer.", row=shown) is None
    assert find("Thank you for my response.", row=asked) == "my response"


def test_a_prompt_that_shows_an_example_or_asks_for_own_words_explains_talk_of_them() -> None:
    asked = Demonstration("r", (Turn("user", "Example: 1 + 1 = 2. Say in your own words what 2 + 2 is."),), "Four.")
    assert find("Following your example, 4. As in the example, we add.", row=asked) is None
    assert find("In my own words: it is 4.", row=asked) is None
    assert find("The rewritten answer is 4.", row=asked) is not None


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Rewrite this email to be polite: Send it now!", "Here is a revised version of the email: Please send it."),
        ("Please improve my reply: no", "Here's a revised reply: Thank you, no."),
        ("Rephrase: it is hot.", "The rephrased version: it is warm."),
        ("Überarbeite den Text.", "Hier ist die überarbeitete Version: ..."),
        ("Reformule ce texte.", "Voici la réponse reformulée : ..."),
        ("Check the student's solution: 1 + 1 = 2.", "The solution is correct."),
        ("Is the following answer right? 1 + 1 = 3", "The given answer is wrong."),
        ("Grade this proof.", "The provided solution is fine."),
    ],
)
def test_a_prompt_that_asks_for_it_explains_it(prompt: str, text: str) -> None:
    assert find(text, row=Demonstration("r", (Turn("user", prompt),), "Fine.")) is None
    assert find(text) is not None


def test_every_phrase_is_a_row_with_its_template_and_language() -> None:
    with mentions._PHRASES.open() as lines:
        rows = [json.loads(line) for line in lines]
    assert all({"template", "language", "phrase"} <= set(row) for row in rows)
    assert all(set(row) <= {"template", "language", "phrase", "asked", "opening"} for row in rows)
    assert {row["template"] for row in rows} <= {"any", "prior_turn", *TEMPLATES}
    assert len({row["language"] for row in rows}) >= 8
