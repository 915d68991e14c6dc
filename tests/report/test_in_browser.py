"""The page as a person sees it, in headless Chromium: no errors, every picture there, filter, search and order work."""

import shutil
from pathlib import Path

import pytest
from places import EVIL, make_comparison, make_run, make_shift, make_sweep, many_rollouts

from onpolicy_sdft.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Opened:
    """A page from a file, and what went wrong in it or was asked of a network."""

    def __init__(self, browser, path: Path, scheme: str = "light"):
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    @property
    def count(self) -> str:
        return self.page.inner_text("#rollout-count")

    def shown(self, name: str) -> list[str]:
        return self.page.eval_on_selector_all(".rollout", f"all => all.map(each => each.dataset.{name})")

    def choose(self, control: str, label: str) -> None:
        self.page.select_option(f"#by-{control}", label=label)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def run_page(base):
    return write_report([make_run(base / "run", rollouts=many_rollouts(500))])[0]


@pytest.fixture(scope="module")
def everything_page(base):
    places = [make_comparison(base / "cmp"), make_sweep(base / "swp"), make_shift(base / "shf")]
    return write_report([*places, make_run(base / "scored"), base / "cmp" / "sft-seed0"])[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_there_without_an_error_or_a_request(browser, everything_page, scheme):
    opened = Opened(browser, everything_page, scheme)
    pictures = opened.page.eval_on_selector_all(
        "img", "all => all.map(e => [e.complete, e.naturalWidth, e.naturalHeight])"
    )
    assert len(pictures) > 35
    assert all(complete and width > 150 and height > 100 for complete, width, height in pictures)
    wide = opened.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 1280  # tables scroll by themselves, the page does not
    targets = opened.page.eval_on_selector_all("nav a", "all => all.map(e => document.querySelector(e.hash) !== null)")
    assert targets
    assert all(targets)
    assert opened.errors == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [everything_page.as_uri()]


def test_the_style_and_the_script_are_in_force(browser, run_page):
    opened = Opened(browser, run_page)
    assert opened.page.evaluate("getComputedStyle(document.querySelector('.tile')).borderRadius") == "8px"
    assert opened.count == "500 of 500 rollouts, 1 to 20 on this page"
    dark = Opened(browser, run_page, "dark")
    assert dark.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"


def test_a_verdict_and_a_reason_can_be_chosen(browser, run_page):
    opened = Opened(browser, run_page)
    opened.choose("verdict", "fallback (167)")  # every third of 500, from the second
    assert opened.count == "167 of 500 rollouts, 1 to 20 on this page"
    assert opened.shown("verdict") == ["fallback"] * 20
    opened.choose("reason", "empty (166)")
    assert opened.count == "0 of 500 rollouts"
    assert opened.shown("verdict") == []
    opened.choose("verdict", "drop (166)")
    assert opened.count == "166 of 500 rollouts, 1 to 20 on this page"
    assert opened.shown("reason") == ["empty"] * 20
    assert opened.errors == []


def test_pages_turn_to_the_last_row(browser, run_page):
    opened = Opened(browser, run_page)
    opened.choose("verdict", "drop (166)")
    back, onwards = opened.page.locator(".rollout-back").first, opened.page.locator(".rollout-next").first
    assert back.is_disabled()
    seen = len(opened.shown("verdict"))
    while onwards.is_enabled():
        onwards.click()
        seen += len(opened.shown("verdict"))
    assert seen == 166
    assert opened.count == "166 of 500 rollouts, 161 to 166 on this page"
    assert opened.page.inner_text(".rollout-page >> nth=0") == "page 9 of 9"
    back.click()
    assert opened.count == "166 of 500 rollouts, 141 to 160 on this page"


def test_rollouts_can_be_put_in_order(browser, run_page):
    opened = Opened(browser, run_page)
    lengths = sorted(record["num_tokens"] for record in many_rollouts(500))
    opened.choose("order", "longest first")
    assert [int(tokens) for tokens in opened.shown("tokens")] == lengths[::-1][:20]
    opened.choose("order", "shortest first")
    assert [int(tokens) for tokens in opened.shown("tokens")] == lengths[:20]
    opened.choose("order", "step, oldest first")
    assert "step 1, example" in opened.page.inner_text(".rollout >> nth=0")
    opened.choose("order", "step, newest first")
    assert "step 125, example" in opened.page.inner_text(".rollout >> nth=0")


def test_words_are_searched_in_all_texts_whatever_their_case(browser, run_page):
    opened = Opened(browser, run_page)
    opened.page.fill("#by-words", "ANSWER 42.")
    assert opened.count == "1 of 500 rollouts, 1 to 1 on this page"
    assert opened.page.inner_text(".rollout pre >> nth=2") == "Answer 42."
    opened.page.fill("#by-words", "no such words")
    assert opened.count == "0 of 500 rollouts"
    opened.page.fill("#by-words", "")
    assert opened.count == "500 of 500 rollouts, 1 to 20 on this page"


def test_nasty_texts_are_text(browser, run_page):
    opened = Opened(browser, run_page)
    opened.page.fill("#by-words", "</SCRIPT><B>bold")
    assert opened.count == "10 of 500 rollouts, 1 to 10 on this page"  # one in fifty
    shown = opened.page.eval_on_selector(".rollout pre >> nth=2", "e => e.textContent")
    # What UTF-16 cannot pair is a replacement character by the time it is text of a page elsewhere.
    assert shown.replace("\ufffd", "\ud800") == EVIL
    assert opened.page.locator(".rollout b").count() == 0
    assert opened.errors == []


def test_runs_can_be_chosen_where_there_are_several(browser, base, tmp_path):
    other = make_run(tmp_path / "other", few=True)
    (page,) = write_report([make_run(tmp_path / "run", rollouts=many_rollouts(30), few=True), other])
    opened = Opened(browser, page)
    assert opened.count == "32 of 32 rollouts, 1 to 20 on this page"
    opened.choose("run", "other (2)")
    assert opened.count == "2 of 32 rollouts, 1 to 2 on this page"
    assert "other, step 2" in opened.page.inner_text(".rollout >> nth=0")


def test_thousands_of_rollouts_are_filtered_at_once(browser, tmp_path):
    page = write_report([make_run(tmp_path / "run", rollouts=many_rollouts(4000), few=True)])[0]
    opened = Opened(browser, page)
    took = opened.page.evaluate(
        """() => {
          const start = performance.now();
          document.getElementById("by-verdict").value = "1";
          document.getElementById("by-verdict").dispatchEvent(new Event("change"));
          return performance.now() - start;
        }"""
    )
    assert opened.count == "1,333 of 4,000 rollouts, 1 to 20 on this page"
    assert took < 500
