"""The report of a run that has everything: its numbers are those of its inputs, and it is a sound page."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest

from plaudit.cli.console import make_console
from plaudit.cli.eval import print_evaluation
from plaudit.evaluation import page
from plaudit.evaluation.results import Evaluation, Interval
from plaudit.report import write_report
from report.fake_run import EVIL, logs
from report.pages import Page, opened


@pytest.fixture(scope="session")
def suite(full_run):
    content = json.loads((full_run / "evaluation" / "evaluation.json").read_text())
    return content["models"][0]["suites"][0]


def test_sections_are_in_order(full):
    assert [one["title"] for one in full.json["sections"]] == [
        "At a glance", "heldout", "lists", "Against others", "Sanity checks", "Training", "Data",
        "Settings and versions",
    ]  # fmt: skip
    for one in full.json["sections"]:
        assert one["title"] in full.page.text
        assert f"## {one['title']}" in full.markdown
        assert {"href": f"#{one['name']}"} in full.page.all("a")
        assert one["name"] in full.page.ids


def test_headline_numbers_have_intervals(full, suite):
    accuracy = suite["statistics"]["pairs"]["accuracy"]
    numbers = {one["label"]: one for one in full.blocks("overview")["headline"]["numbers"]}
    assert numbers["Accuracy"]["value"] == accuracy["value"]
    assert numbers["Accuracy"]["interval"] == accuracy["interval"]
    assert numbers["Calibration error"]["value"] == suite["calibration"]["scores"]["ece"]
    low, high = accuracy["interval"]
    for text in (full.page.text, full.markdown):
        assert f"{accuracy['value']:.1%}" in text
        assert f"95% interval {low:.1%} to {high:.1%}" in text


def test_tables_hold_the_numbers_of_the_evaluation(full, suite):
    found = full.blocks("suite-1")
    edges = suite["histogram"]["edges"]
    columns = zip(edges[:-1], edges[1:], suite["histogram"]["better"], suite["histogram"]["worse"], strict=True)
    assert found["rewards"]["rows"] == [list(row) for row in columns]
    assert [row[2] for row in found["margins"]["rows"]] == suite["margins"]["counts"]
    assert found["points"]["rows"] == suite["points"]
    assert {row[0]: row[2] for row in found["slices_source"]["rows"]} == {
        name: one["pairs"]["accuracy"]["value"] for name, one in suite["slices"]["source"].items()
    }
    drawn = [one for one in suite["calibration"]["after"]["curve"] if one["n"]]
    assert [row[4:] for row in found["reliability"]["rows"] if row[0] == "rescaled"] == [
        [one["confidence"], one["accuracy"], one["interval"]] for one in drawn
    ]
    assert [row[2] for row in found["calibration"]["rows"]] == pytest.approx(
        [1.0, 1.0, suite["calibration"]["temperature"]]
    )
    assert [row[3] for row in found["length_bins"]["rows"]] == [
        one["accuracy"]["value"] for one in suite["length"]["bins"]
    ]


def test_best_of_n_stands_between_random_and_oracle(full):
    rows = full.blocks("suite-2")["best_of_n"]["rows"]
    assert [row[0] for row in rows] == list(range(1, 9))
    assert all(random <= picked <= oracle for _, picked, _, oracle, random in rows[1:])


def test_curves_hold_the_numbers_of_the_logs(full):
    told = logs(300)
    found = full.blocks("training")
    assert list(found) == ["summary", "loss", "accuracy", "margin", "learning_rate", "grad_norm"]
    assert found["loss"]["columns"] == ["step", "training", "held-out"]
    assert [row[1] for row in found["loss"]["rows"]] == [one["loss"] for one in told if "loss" in one]
    assert [row[2] for row in found["loss"]["rows"] if row[2] is not None] == [
        one["eval_loss"] for one in told if "eval_loss" in one
    ]


def test_data_and_settings(full):
    found = full.blocks("data")
    assert found["rows"]["rows"][0][:4] == ["train", 6000, 5871, 129]
    assert ["train", "dropped", "over-long", 118, "3, 77, 102, 140, 181, ..."] in found["dropped"]["rows"]
    found = full.blocks("settings")
    assert ["learning_rate", 2e-5] in found["changed_settings"]["rows"]
    assert ["seed", 42] in found["settings"]["rows"]
    assert ["torch", "2.13.0", None] in found["versions"]["rows"]


def test_findings_say_what_the_numbers_mean(full):
    text = full.page.text
    assert re.search(
        r"Accuracy on heldout: \d\d\.\d% is better than always taking the longer response \(\d\d\.\d%\)\.", text
    )
    assert "Length on heldout: the model leans to longer responses; " in text
    assert re.search(r"Calibration on lists: [^:]*; the model is overconfident: a temperature of \d", text)
    assert "Not scored on heldout: 3 rows." in text


def test_page_terminal_and_report_say_the_same(full, full_run, capsys):
    evaluation = Evaluation.load(full_run / "evaluation")
    print_evaluation(evaluation, make_console(), mistakes=1)
    shown, beside = capsys.readouterr().out, page.evaluation_page(evaluation)
    suite = evaluation.suites[0]
    for title, text, tone in page.findings(suite):
        assert f"{title}: {text}" in shown
        assert f"- {title}: {page.line(text)}" in beside
        assert tone not in ("good", "warning") or f"{title} on heldout: {text}." in full.page.text
    table = page.suite_table(suite)
    assert full.blocks("suite-1")["scores"]["rows"] == json.loads(json.dumps(table.rows))
    for row in table.cells():
        assert "  ".join(row).split() in [line.split() for line in shown.splitlines()]
        assert f"| {' | '.join(cell.strip() for cell in row)} |" in beside
    facts = page.mistake_of(suite.mistakes[0], suite).facts
    assert f"Mistake: {' · '.join(facts)}" in shown
    assert " · ".join(map(page.line, facts)) in beside
    assert " · ".join(facts) in full.page.text


@pytest.mark.parametrize(
    ("p", "difference", "words"),
    [
        (
            0.01,
            0.15,
            "runs/first is better than a bag of words (train, 90 comparisons) by 15.0 points (95% 10.0 to 20.0), ",
        ),
        (
            0.01,
            -0.1,
            "a bag of words (train, 90 comparisons) is better than runs/first by 10.0 points (95% 5.0 to 15.0), p ",
        ),
        (
            0.5,
            0.02,
            "no difference shown: runs/first minus a bag of words (train, 90 comparisons) is +2.0 points (95%",
        ),
    ],
)
def test_a_bag_of_words_is_compared_with(full_run, tmp_path, p, difference, words):
    folder = shutil.copytree(full_run, tmp_path / "run")
    evaluation = Evaluation.load(folder / "evaluation")
    comparison = evaluation.comparisons[0]
    overall = replace(
        comparison.overall,
        difference=difference,
        interval=Interval(difference - 0.05, difference + 0.05),
        scores=(0.8, 0.8 - difference),
        p_adjusted=p,
        names=("runs/first", "a bag of words (train, 90 comparisons)"),
    )
    models = (comparison.models[0], "bag of words (train, 90 comparisons)")
    baseline = replace(comparison, models=models, overall=overall, baseline=True)
    replace(evaluation, comparisons=(baseline,)).save(folder / "evaluation")
    overview = opened(write_report(folder)).json["sections"][0]["blocks"]
    tones = {block["text"]: block["tone"] for block in overview if block["type"] == "paragraph"}
    text = next(text for text in tones if text.startswith(f"Bag of words on heldout: {words}"))
    assert tones[text] == ("good" if difference > 0.1 else "warning")


def test_comparisons_name_the_verdict(full, full_run):
    content = json.loads((full_run / "evaluation" / "evaluation.json").read_text())
    overall = content["comparisons"][0]["overall"]
    assert overall["verdict"] in full.page.text
    assert full.blocks("comparisons")["comparisons"]["rows"][0][6] == overall["difference"]
    assert len(full.blocks("comparisons")["slices"]["rows"]) == 6


# --- the page ----------------------------------------------------------------------------------------------------


def test_texts_cannot_break_out(full):
    assert EVIL.split("\n")[0] in full.page.text
    assert "<script>alert" not in full.html
    assert "<img" not in full.html
    assert len(full.page.all("script")) == 1
    assert not any(name.startswith("on") for _, attrs in full.page.elements for name in attrs)
    # In Markdown the texts are fenced, and a text with fences gets a longer one.
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", full.markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "<script>alert" in full.markdown


def test_names_cannot_break_out_either(full_run, tmp_path):
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    text = (full_run / "evaluation" / "evaluation.json").read_text()
    for name in ('"heldout', '"safety', '"source": {'):  # a suite, a slice, and the column of the slices
        text = text.replace(name, f'"<b onclick=x>\\" x=\\"{name[1:7]} `| #{name[7:]}')
    (folder / "evaluation" / "evaluation.json").write_text(text)
    report = write_report(folder)
    page = Page(report.html.read_text())
    assert page.all("b") == []
    assert all(re.fullmatch(r"-?[\d.]+", attrs.get("x") or "0") for _, attrs in page.elements)
    assert '<b onclick=x>" x="safety' in page.text
    assert "<b onclick" not in re.sub(r"^(`{3,})text\n.*?\n\1$", "", report.markdown.read_text(), flags=re.S | re.M)


def test_nothing_is_loaded_from_anywhere(full):
    for tag, attrs in full.page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            value = attrs.get(name) or ""
            allowed = value.startswith(("#", "data:,")) or (tag == "a" and value.startswith("https://"))
            assert not value or allowed, (tag, attrs)
    style = full.html[full.html.index("<style>") : full.html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http:" not in full.html
    policy = next(one["content"] for one in full.page.all("meta") if "Policy" in one.get("http-equiv", ""))
    assert policy.startswith("default-src 'none';")


def test_every_figure_has_words_and_a_table(full):
    pictures = [attrs for _, attrs in full.page.elements if attrs.get("class") == "picture"]
    figures = [block for one in full.json["sections"] for block in one["blocks"] if block["type"] == "figure"]
    assert len(pictures) == len(figures) == len(full.page.all("figure")) == len(full.page.all("svg")) >= 15
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 30 for attrs in pictures)
    assert all(block["rows"] and len(block["caption"]) >= 10 for block in figures)


def test_figures_take_colours_and_fonts_from_the_page(full):
    for svg in re.findall(r"<svg.*?</svg>", full.html, flags=re.DOTALL):
        tags = " ".join(re.findall(r"<[^>]+>", svg))
        assert not re.search(r"#[0-9a-f]{6}\b(?![^\"]*\))", re.sub(r'(href="|url\()#\w+', "", tags))
        assert "var(--" in tags
        assert "font-family" not in tags
        assert "font-size" not in tags
        assert "font:" not in tags
        assert not re.search(r"<svg[^>]* (width|height|xmlns)", tags)
    assert len(full.page.ids) == len(set(full.page.ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', full.html)
    assert {one or other for one, other in used} <= set(full.page.ids)


def test_it_is_small_and_the_same_again(full, full_run, tmp_path):
    assert len(full.html.encode()) < 600_000
    again = write_report(full_run, tmp_path / "again.html")
    assert again.html.read_text() == full.html
    assert again.json.read_text() == full.files.json.read_text()
    assert again.markdown.read_text() == full.files.markdown.read_text()


def themes(css):
    """Variables of the light and the dark colours."""
    blocks = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r"\{([^{}]*--surface[^{}]*)\}", css)
    ]
    assert blocks[1] == blocks[2], "dark by the system and dark by choice differ"
    return blocks[:2]


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_that_of_the_guidelines(full, dark):
    colours = themes(full.html)[dark]
    for name in ("ink", "muted", "link", "better", "worse"):
        assert contrast(colours[name], colours["surface"]) >= 4.5, name
        assert name in ("better", "worse") or contrast(colours[name], colours["raised"]) >= 4.5, name
    for name in ("third", "fourth", "fifth"):
        assert contrast(colours[name], colours["surface"]) >= 3, name
