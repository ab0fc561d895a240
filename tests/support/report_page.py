"""A made report with every section, and its page parsed."""

from html.parser import HTMLParser

import numpy as np

from saqsam.analysis.inventory import take_inventory
from saqsam.evaluation.compare import Agreement, ImageDifference, Interval, TaskDifference
from saqsam.ptq.log import AttentionClipping, Clip, UnitLog
from saqsam.report.collect import encode
from saqsam.report.content import (
    Accuracy,
    Distribution,
    Focus,
    GalleryImage,
    GroupSensitivity,
    Report,
    Sensitivity,
)
from saqsam.report.labels import describe
from saqsam.report.log import Source
from support.tiny_quantized import quantized_tiny

ATTENTION = "mask_decoder.transformer.layers.0.cross_attn_token_to_image"


def made_report() -> Report:
    """Return a report of made-up numbers, each of which occurs once."""
    inventory = take_inventory(quantized_tiny())
    source = Source("/home/somebody/models/<b>sam & co", "scenes")
    picture = encode(np.full((8, 12, 3), 99, dtype=np.uint8), "a gray field")
    image = ImageDifference(3, 30, "one.png", 4, 0.75, 0.5)
    difference = TaskDifference(
        "prompt",
        "IoU of an object",
        9,
        0.734,
        0.612,
        Interval(-0.122, -0.2, -0.04),
        {"miou": -0.122},
        Agreement(9, 0.81, 0.4),
        (image,),
    )
    figures = {"miou": 0.734, "boundary_iou": 0.6, "share_above_90": 0.2, "instances": 9}
    return Report(
        name="min-max-w4a4",
        source=source,
        content_sha256="0123456789abcdef",
        versions={"saqsam": "1"},
        steps=describe(inventory.recipe, source),
        inventory=inventory,
        disk_bytes=40_000,
        accuracy=Accuracy("made", 5, "box", {**figures, "miou": 0.612}, figures, difference),
        gallery=tuple(
            GalleryImage(
                name, 4, 0.75, 0.5, dict.fromkeys(("prompts", "float", "quantized", "difference"), picture)
            )
            for name in ("one.png", "two.png", "three.png")
        ),
        sensitivity=Sensitivity(
            "made",
            4,
            20,
            (
                GroupSensitivity("encoder.lin2", 0.9, 0.7, 0.86, 0.7),
                GroupSensitivity("neck", 0.99, 0.73, 0.8, 0.6),
            ),
            0.81,
            0.612,
            0.734,
        ),
        distributions=(
            Distribution(
                f"{ATTENTION}.key_quantizer",
                "decoder.token_to_image",
                4,
                (-10.0, 30.0),
                (-2.0, 5.0),
                0.125,
                (0.25, 0.7, 0.0, 0.05),
            ),
        ),
        clipping=(AttentionClipping(ATTENTION, (Clip("key_quantizer", 0.9, -2.0, 5.0),), 0.5, 0.25),),
        focus=(Focus(ATTENTION, 0.125, {"float": picture, "quantized": picture}),),
        focus_image=picture,
        units=(UnitLog("neck", [1, 2, 3], [0.5, 0.25, 0.125], 0.0625),),
        left_out={"log": "there is none"},
    )


class Page(HTMLParser):
    """References and text of a parsed page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
