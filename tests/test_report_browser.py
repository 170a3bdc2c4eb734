# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: a phone and a wide screen, light and dark.

It is driven by its command line. A copy of the page carries a script that
writes what the browser knows into the page, which is then dumped.
"""

import html
import json
import re
import shutil
import subprocess

import made_up_run
import numpy as np
import pytest
from PIL import Image

import main
from noisy_student.reporting.report.page import FOLDER

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
    "chrome",
)  # fmt: skip
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    # What the browser would ask for itself stays on this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
PHONE, WIDE = 390, 1440
# Windows have a least width, frames have not.
FRAME = """<!DOCTYPE html><title>frame</title><link rel="icon" href="data:,">
<body style="margin: 0"><script>
addEventListener("message", (e) => { document.body.dataset.probe = e.data; });
</script>
<iframe src="%s" style="width: %dpx; height: 900px; border: 0"></iframe>"""
PROBE = """<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const all = [...document.querySelectorAll("body *")];
  const size = (e) => parseFloat(getComputedStyle(e).fontSize);
  parent.postMessage(JSON.stringify({
    width,
    scroll: document.documentElement.scrollWidth,
    wide: all.filter((e) => e.getBoundingClientRect().right > width + 1)
      .map((e) => e.outerHTML.slice(0, 120)),
    small: all.filter((e) => e.innerText && size(e) < 10 && size(e) > 0)
      .map((e) => e.outerHTML.slice(0, 120)),
    images: document.images.length,
    broken: [...document.images].filter((i) => !i.naturalWidth).length,
    loaded: performance.getEntriesByType("resource").map((e) => e.name),
    titles: [...document.querySelectorAll("h2")].map((e) => e.innerText),
    text: document.body.innerText,
  }), "*");
});
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Function that runs a browser on a file: its output and its errors."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

    def run(path, *flags):
        profile = tmp_path_factory.mktemp("profile")
        done = subprocess.run(
            [found, *FLAGS, f"--user-data-dir={profile}", *flags,
             path.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.fixture(scope="module", params=["few classes", "many classes"])
def page(request, tmp_path_factory):
    """A finished run's page, and what its file names and numbers are."""
    root = tmp_path_factory.mktemp("browser")
    names = ["blue sky", "a name that is rather long for a class " * 4]
    count = 10 if request.param == "few classes" else 120
    names += [f"W{'i' * (k % 40)} {k}" for k in range(count - 2)]
    workdir, _ = made_up_run.make(
        root, names, unlabeled=4 * count, students="b0,b0"
    )
    assert main.main(["", "--mode=report", f"--workdir={workdir}"]) == 0
    return workdir / "report.html"


@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_the_page_is_whole_and_fits(page, browse, tmp_path, width):
    text = page.read_text().replace("<body>", f"<body>{PROBE}")
    # Details that are closed must fit too.
    text = re.sub(r"<details([^>]*?)( open)?>", r"<details\1 open>", text)
    (tmp_path / "page.html").write_text(text)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % ("page.html", width))
    log = tmp_path / "net.json"
    dom, errors = browse(frame, "--dump-dom", f"--log-net-log={log}")
    probe = re.search(r'data-probe="(.*?)"', dom, re.DOTALL)[1]
    probe = json.loads(html.unescape(probe))
    assert probe["width"] == width
    assert probe["scroll"] <= width and not probe["wide"]
    assert not probe["small"], "texts below 10 pixels"
    assert probe["images"] > 100 and not probe["broken"]
    assert len(probe["titles"]) == 10
    assert probe["titles"][1] == "Accuracy of each model"
    for record in json.loads((page.parent / "results.json").read_text()):
        number = record.get("top1", record.get("num_kept"))
        spelled = f"{number:.1%}" if number < 1 else f"{number:,}"
        assert spelled in probe["text"]
    assert "CONSOLE" not in errors, errors
    assert probe["loaded"] == [] == requested(log)


def requested(log):
    """Addresses on a network that a page asked for."""
    found = []
    for event in json.loads(log.read_text())["events"]:
        parameters = event.get("params", {})
        address = parameters.get("url", "")
        # What the browser asks for by itself has no origin.
        its_own = parameters.get("initiator", "not an origin")
        if address.startswith("http") and its_own != "not an origin":
            found.append(address)
    return found


def test_a_page_that_is_not_whole_is_noticed(browse, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<img src='http://a.invalid/x.png'><script>b()</script>")
    log = tmp_path / "net.json"
    _, errors = browse(path, "--dump-dom", f"--log-net-log={log}")
    assert requested(log) and "CONSOLE" in errors


def test_light_and_dark_look_as_they_should(page, browse, tmp_path):
    papers = {}
    for mode, scheme in (("dark", 0), ("light", 1)):
        path = tmp_path / f"{mode}.png"
        _, errors = browse(
            page, f"--screenshot={path}", f"--window-size={PHONE},1200",
            f"--blink-settings=preferredColorScheme={scheme}",
        )  # fmt: skip
        assert "CONSOLE" not in errors, errors
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        papers[mode] = pixels[5, 5]
        colors = np.unique(pixels.reshape(-1, 3), axis=0)
        assert len(colors) > 200, "nothing is drawn"
        # The ink of texts stands out from the paper (WCAG asks for 4.5).
        ink = np.unique(pixels[60:120, 10:200].reshape(-1, 3), axis=0)
        contrasts = [contrast(one, papers[mode]) for one in ink]
        assert max(contrasts) > 7
    assert papers["light"].min() > 230 and papers["dark"].max() < 50


def contrast(first, second):
    """Ratio of two colors' luminances, as WCAG 2 defines it."""

    def luminance(color):
        share = np.asarray(color) / 255
        linear = np.where(
            share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ (0.2126, 0.7152, 0.0722))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colors_of_texts_have_contrast(mode):
    style = (FOLDER / "page.css").read_text()
    palettes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colors = {
        name: [int(value[k : k + 2], 16) for k in (1, 3, 5)]
        for name, value in re.findall(r"--([\w-]+): (#\w{6})", palettes[mode])
    }
    for text in ("ink", "muted", "blue", "orange"):
        for ground in ("paper", "surface", "faint"):
            ratio = contrast(colors[text], colors[ground])
            assert ratio >= 4.5, (text, ground, round(ratio, 2))
    for ground in ("blue", "orange"):
        assert contrast(colors["on-strong"], colors[ground]) >= 4.5
