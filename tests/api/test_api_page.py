"""The try-it page in a real browser: Debian's Chromium, or the one that AGRI_CAE_CHROMIUM names.
AGRI_CAE_SCREENSHOTS keeps pictures of it in a folder."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright import sync_api as playwright
from served import served

from agri_cae.io.images import Picture, provenance_of, read_image, sample
from agri_cae.service.in_memory import encode

CHROMIUM = (
    os.environ.get("AGRI_CAE_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
WAIT = 120_000   # ms: of a busy machine


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("site")) as s:
        yield f"http://127.0.0.1:{s.port}/"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])   # CI runs as root
        yield b
        b.close()


class Seen:
    "A page, and what must not happen on it: complaints, and requests to anywhere else"
    def __init__(self, browser, site, **kw):
        self.context = browser.new_context(accept_downloads=True, **kw)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.complaints, self.asked = [], []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(site)
        self.page.wait_for_selector("#model option", state="attached")
    def drop(self, name, data, kind="image/jpeg"):
        t = self.page.evaluate_handle(
            """([n, d, k]) => { const t = new DataTransfer();
                              t.items.add(new File([new Uint8Array(d)], n, {type: k})); return t; }""",
            [name, list(data), kind],
        )
        self.page.dispatch_event("#stage", "drop", {"dataTransfer": t})
    def says(self, pattern):
        playwright.expect(self.page.locator("#status")).to_have_text(re.compile(pattern), timeout=WAIT)
    def shot(self, name):
        if folder := os.environ.get("AGRI_CAE_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)
    def done(self, site, complaints=()):
        assert all(u.startswith((site, "blob:", "data:")) for u in self.asked), self.asked
        assert [c for c in self.complaints if not any(o in c for o in complaints)] == []
        self.context.close()


def cut(page):
    return page.evaluate("document.getElementById('cut').getBoundingClientRect().x")


def test_drop_slide_zoom_download(browser, site, tmp_path):
    seen = Seen(browser, site, viewport=dict(width=1200, height=900))
    page = seen.page
    seen.shot("empty")
    noisy = sample("field_camera")
    seen.drop("leaf.jpg", noisy.read_bytes())
    seen.says(r"Estimated noise: 1\.8 of 255.*Strength 0\.\d+, model fast@\d+")
    seen.shot("denoised")
    box, at = page.locator("#stage").bounding_box(), cut(page)
    page.mouse.move(at + 1, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 120, steps=5)
    page.mouse.up()
    assert cut(page) < at - box["width"] / 5
    assert "inset" in page.evaluate("document.getElementById('after').style.clipPath")
    seen.shot("slid")
    def scale():
        shown = page.evaluate("document.getElementById('before').style.transform")
        return float(re.search(r"scale\(([\d.e-]+)", shown)[1])
    before = scale()
    page.click("#in")
    assert scale() > before
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.wheel(0, -800)
    assert scale() > 2 * before
    seen.shot("zoomed")
    page.click("#fit")
    assert abs(scale() - before) < 1e-6
    page.locator("#cut").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#cut", "aria-valuenow") == "27"
    page.uncheck("#auto")
    seen.says("Strength 1,")
    page.locator("#strength").fill("0.3")
    seen.says("Strength 0.3,")
    page.select_option("#model", index=0)
    with page.expect_download() as d: page.click("#save")
    d.value.save_as(tmp_path/"got.jpg")
    assert d.value.suggested_filename == "leaf_denoised.jpg"
    got, was = read_image(tmp_path/"got.jpg"), read_image(noisy)
    assert got.data.shape == was.data.shape
    assert provenance_of(got).endswith("strength=0.3")
    assert not np.array_equal(got.data, was.data)
    seen.done(site)


def test_broken_files_are_explained(browser, site):
    seen = Seen(browser, site, viewport=dict(width=1200, height=900))
    seen.drop("leaf.jpg", sample("field_camera").read_bytes())
    seen.says("Strength")
    seen.drop("broken.jpg", sample("field_camera").read_bytes()[:20_000])
    seen.says("cannot be read: the file is truncated")
    seen.shot("broken")
    assert not seen.page.is_visible("#save") and not seen.page.is_visible("#after") and seen.page.is_visible("#hint")
    seen.drop("notes.txt", b"Row 3, plot 7", "text/plain")
    seen.says("is not an image of a known format")
    seen.done(site, ["400 (Bad Request)"])


def test_on_a_phone(browser, site):
    seen = Seen(
        browser, site, viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True
    )
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap("[data-sample=airborne]")
    seen.says("Estimated noise")
    seen.shot("phone")  # a TIFF, which browsers cannot show
    assert (
        page.evaluate("document.getElementById('before').naturalWidth")
        == page.evaluate("document.getElementById('after').naturalWidth")
        == 400
    )
    with page.expect_download() as d: page.tap("#save")
    assert d.value.suggested_filename == "airborne_denoised.tif"
    photo = encode(Picture(np.random.default_rng(0).integers(90, 150, (300, 200, 3), np.uint8)), "png")
    page.set_input_files("#file", dict(name="photo.png", mimeType="image/png", buffer=photo))
    seen.says("Estimated noise: 1[5-9]")
    assert all(
        min(page.locator(s).bounding_box().values()) is not None and page.locator(s).bounding_box()["height"] >= 40
        for s in (".pick.main >> nth=0", "#in", "#save")
    )
    seen.done(site)


def test_routes_are_described(browser, site):
    seen = Seen(browser, site)
    page = seen.page
    page.goto(site + "docs")
    page.wait_for_selector("details")
    page.click("details >> nth=0")
    seen.shot("docs")
    assert f"{site}v1/denoise" in page.inner_text("pre >> nth=0")
    assert "AGRI_CAE_UPLOAD_BYTES" in page.inner_text("table >> nth=-1")
    seen.done(site)


def test_key_is_asked_for(browser, tmp_path):
    from agri_cae.api.keys import new_key
    key, entry = new_key("drone")
    with served(tmp_path, AGRI_CAE_KEYS=entry) as s:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"http://127.0.0.1:{s.port}/")
        page.fill("#key", key)
        page.keyboard.press("Tab")
        page.wait_for_selector("#model option", state="attached")
        page.click("[data-sample=field_camera]")
        playwright.expect(page.locator("#status")).to_have_text(re.compile("Estimated noise"), timeout=WAIT)
        context.close()
