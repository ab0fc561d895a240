"""The page: whole without a network, said in words too, and alive in a real browser."""

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from saqsam.report.content import Report
from saqsam.report.html import to_html
from saqsam.report.markdown import to_markdown
from saqsam.report.write import write_report
from support.report_page import Page, made_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def html() -> str:
    return to_html(made_report())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_fetched(html: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), target
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://", html)
    (policy,) = (tag for tag in page.of("meta") if tag.get("http-equiv"))
    assert str(policy["content"]).startswith("default-src 'none'")


def test_pictures_are_whole_and_have_words(page: Page) -> None:
    images = page.of("img")
    assert len(images) == 3 * 4 + 1 + 2
    for image in images:
        assert image["alt"]
        kind, data = str(image["src"]).split(",", 1)
        assert kind == "data:image/webp;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (12, 8)
        assert (image["width"], image["height"]) == ("12", "8")
    for chart in page.of("svg"):
        assert chart["role"] == "img"
        assert chart["aria-label"]


def test_links_within_the_page_lead_somewhere(page: Page) -> None:
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    targets = [str(link["href"]) for link in page.of("a")]
    assert len(targets) == 9
    assert all(target[1:] in anchors for target in targets)
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert headings.count("h1") == 1
    assert page.open == []


def test_figures_are_those_of_the_report(page: Page) -> None:
    text = " ".join(page.text.split())
    for figure in (
        *("0.734", "0.612", "−0.122", "−0.200 to −0.040", "IoU 0.810", "40.0 % of masks above 0.9"),
        *(
            "one.png",
            "0.750 → 0.500 (−0.250)",
            "0.04 MB",
            "0123456789ab",
            "6.2 % moved",
            "-2 to 5, 12.5 % outside",
        ),
        *("decoder layer 1, token-to-image attention: focus deviation 0.125", "-10 to 30", "-2 to 5"),
        "Clipping and learning: there is none",
    ):
        assert figure in text, figure
    # Names of files come from others: they are text, and the folders above them are nobody's business.
    assert "<b>sam & co, min-max-w4a4" in text
    assert "somebody" not in text
    rows = re.search(r"neck −0\.010 −0\.010", text)
    assert rows is not None
    assert text.index("encoder: MLP, second layer −0.100 +0.050") < rows.start()


def test_a_report_of_little_has_few_sections() -> None:
    report = made_report()
    little = Report(
        **{
            field.name: getattr(report, field.name)
            for field in dataclasses.fields(Report)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        | {"accuracy": None, "source": None}
    )
    page = Page(to_html(little))
    sections = [section["id"] for section in page.of("section")]
    assert sections == ["how", "size", "about"]
    assert not page.of("img")
    assert to_markdown(little).startswith("# min-max-w4a4\n")


def test_markdown_and_json_say_the_same(tmp_path: Path) -> None:
    report = made_report()
    for form in ("html", "md", "json"):
        write_report(report, tmp_path / f"r.{form}", form)
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| mean IoU | 0.734 | 0.612 | −0.122 | −0.200 to −0.040 |" in text
    assert "| encoder: MLP, second layer | −0.100 | +0.050 |" in text
    assert "| decoder layer 1, token-to-image attention | 0.500 | 0.250 |" in text
    widths = {}
    for line in text.splitlines():
        if line.startswith("|"):
            widths.setdefault(table := widths.get("table", 0), line.count("|"))
            assert line.count("|") == widths[table], line
        else:
            widths["table"] = widths.get("table", 0) + 1
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["accuracy"]["difference"]["difference"] == {"mean": -0.122, "low": -0.2, "high": -0.04}
    assert content["accuracy"]["difference"]["images"][0]["difference"] == -0.25
    assert content["sensitivity"]["groups"][0]["alone"] == 0.9
    assert content["distributions"][0]["shares"] == [0.25, 0.7, 0.0, 0.05]
    assert content["inventory"]["name"] == "min-max-w4a4"
    assert "pictures" not in (tmp_path / "r.json").read_text()
    with pytest.raises(ValueError, match="expected one of html, md, json, got 'pdf'"):
        write_report(report, tmp_path / "r.pdf", "pdf")


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"no browser here: one of {', '.join(BROWSERS)} is needed")


class _Server(BaseHTTPRequestHandler):
    """Gives the page, and notes all that is asked for."""

    asked: list[str]
    content: bytes

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        if self.path == "/":
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(html: str) -> Iterator[type[_Server]]:
    # The keys are pressed by a script that the page's own policy lets in; the page is otherwise as written.
    press = """<script>
    const log = [];
    const state = () => [...document.querySelectorAll(".gallery > li")].findIndex((item) => !item.hidden);
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    log.push(state());
    document.querySelectorAll("#gallery .turn button")[1].focus();
    press("ArrowRight"); log.push(state());
    press("End"); press("ArrowRight"); log.push(state());
    press("Home"); log.push(state());
    document.querySelectorAll("#gallery .turn button")[1].click(); log.push(state());
    document.getElementById("theme").click(); log.push(document.documentElement.dataset.theme);
    document.title = JSON.stringify({log, broken: [...document.images].filter((i) => i.src && !i.alt).length,
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth});
    </script></body>"""
    handler = type("Handler", (_Server,), {"asked": [], "content": html.replace("</body>", press).encode()})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    handler.port = server.server_address[1]  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_in_a_real_browser(browser: str, served: type[_Server], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"),
            *("--window-size=500,900", f"--user-data-dir={tmp_path}", "--dump-dom"),
            f"http://127.0.0.1:{served.port}/",  # type: ignore[attr-defined]
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert served.asked == ["/"]
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title is not None
    found = json.loads(title[1])
    # Shown first, after right, after end and one more, after home, after a click on next; dark after light.
    assert found["log"] == [0, 1, 2, 0, 1, "dark"]
    assert found["broken"] == 0
    assert found["wide"] <= 0  # nothing sticks out sideways on a narrow screen
