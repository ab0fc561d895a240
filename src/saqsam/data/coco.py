"""COCO instance annotations as a data set, and LVIS, which is COCO's format with a few fields more."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pycocotools.mask as rle_codec

from saqsam.data.datasets import Instance, Sample
from saqsam.data.images import read_image_with_notes
from saqsam.data.json_fields import is_int, is_xywh, read_json, touches, xyxy
from saqsam.data.rle import segmentation_to_rle

MISSING_FILE = "missing image file"
UNKNOWN_IMAGE = "unknown image id"
DAMAGED_MASK = "damaged mask"
EMPTY_MASK = "empty mask"
OTHER_SIZE = "mask of another size than the image"
EMPTY_BOX = "box without area"
OUTSIDE_BOX = "box outside the image"

_LOOKED_FOR = 50
"""Images of a file that its folder is found by: some may be missing."""


class CocoDataset:
    """Images with object masks from a COCO or LVIS instance file.

    Only the index is held; each image is read, and its masks are checked, when it is asked for. What cannot
    be used is left out and counted by reason: image files that are missing, annotations without a mask, with
    a damaged one or one of another size, boxes without area or outside the image.

    LVIS (Gupta et al., CVPR 2019) names an image by its `coco_url`, whose last two parts are the file's place below
    a COCO root, and says of each image which categories were looked for, and which of them not to the end.

    Args:
        images_dir: Folder that the `file_name`s are relative to. None looks for it, by the first images that the file
            lists: `images/` beside the file, its own folder, the folder above (LVIS's file in `ROOT/annotations/`), and
            there `val2017/` for `instances_val2017.json`.
        annotations_json: COCO instance file. Masks as run lengths or polygons; boxes are `bbox` (x, y, width,
            height), or taken from the mask where absent.
        name: Name in tables; by default that of the folder that holds the annotations.
        limit: Keep the first `limit` images that exist, in the order of the file; None keeps all.

    Attributes:
        name: As above.
        image_ids: Ids of the kept images, in order.
        digest: Of the annotation file.
        category_names: Name of each category id; empty where the file lists none.
        category_frequencies: LVIS's `r`, `c` or `f` (rare, common, frequent) by category id; empty elsewhere.

    Raises:
        ValueError: A file or folder is missing, the file is not COCO instance JSON, ids are not unique
            integers, or no image is left.
    """

    def __init__(
        self,
        images_dir: str | Path | None,
        annotations_json: str | Path,
        *,
        name: str | None = None,
        limit: int | None = None,
    ) -> None:
        path = Path(annotations_json)
        if images_dir is not None and not Path(images_dir).is_dir():
            raise ValueError(f"{images_dir}: expected the folder of the images, found none")
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError(f"{path}: expected COCO instance JSON with a list 'images'")
        self.name = name if name is not None else path.resolve().parent.name
        self.category_names = _category_names(content, path)
        self.category_frequencies: dict[int, str] = {
            category["id"]: category["frequency"]
            for category in content.get("categories") or []
            if isinstance(category.get("frequency"), str)
        }
        self._sizes = _image_sizes(content["images"], path)
        self._images_dir = _find_images(content["images"], path) if images_dir is None else Path(images_dir)
        self._index_skips: Counter[str] = Counter()
        self._images: list[dict[str, Any]] = []
        for record in content["images"]:
            if limit is not None and len(self._images) == limit:
                break
            if (self._images_dir / _file_name(record)).is_file():
                self._images.append(record)
            else:
                self._index_skips[MISSING_FILE] += 1
        if not self._images:
            raise ValueError(
                f"{path}: expected images in {self._images_dir}, found none of {len(self._sizes)}"
            )
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self.image_ids: tuple[int, ...] = tuple(record["id"] for record in self._images)
        self._annotations = self._index_annotations(content.get("annotations", []), path)
        self._sample_skips: dict[int, dict[str, int]] = {}

    def _index_annotations(self, annotations: Any, path: Path) -> dict[int, list[dict[str, Any]]]:
        if not isinstance(annotations, list):
            raise ValueError(f"{path}: expected 'annotations' to be a list, got {type(annotations).__name__}")
        index: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in self.image_ids}
        seen: set[int] = set()
        for position, annotation in enumerate(annotations):
            if not isinstance(annotation, dict) or not is_int(annotation.get("id")):
                raise ValueError(f"{path}: annotation {position}: expected an object with an integer id")
            if annotation["id"] in seen:
                raise ValueError(f"{path}: expected unique annotation ids, got {annotation['id']} twice")
            seen.add(annotation["id"])
            image_id = annotation.get("image_id")
            if not is_int(image_id) or image_id not in self._sizes:
                self._index_skips[UNKNOWN_IMAGE] += 1
            elif image_id in index:
                index[image_id].append(annotation)
        return index

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and check its instances.

        Raises:
            ValueError: The image file cannot be read.
        """
        record = self._images[index]
        image, notes = read_image_with_notes(self._images_dir / _file_name(record))
        skips: Counter[str] = Counter()
        instances: list[Instance] = []
        for annotation in self._annotations[record["id"]]:
            instance = _read_instance(annotation, self._sizes[record["id"]], image.shape[:2])
            if isinstance(instance, Instance):
                instances.append(instance)
            else:
                skips[instance] += 1
        self._sample_skips[record["id"]] = dict(skips)
        return Sample(
            record["id"],
            _file_name(record),
            image,
            tuple(instances),
            dict(skips),
            judged=self._judged(record),
            incomplete=frozenset(record.get("not_exhaustive_category_ids", ())),
            notes=Counter(notes),
        )

    def _judged(self, record: dict[str, Any]) -> frozenset[int] | None:
        """LVIS: the categories that are annotated in an image, and those that it is known to be without."""
        if "neg_category_ids" not in record:
            return None
        present = (annotation.get("category_id") for annotation in self._annotations[record["id"]])
        return frozenset(filter(is_int, present)) | frozenset(record["neg_category_ids"])

    def image_size(self, image_id: int) -> tuple[int, int]:
        """(height, width) that the annotation file states for an image of it, kept or not."""
        return self._sizes[image_id]

    def has_image(self, image_id: int) -> bool:
        """Whether the annotation file lists this image, kept or not."""
        return image_id in self._sizes

    @property
    def index_skipped(self) -> dict[str, int]:
        """What was left out when the file was indexed, by reason: missing files, unknown images."""
        return dict(self._index_skips)

    @property
    def skipped(self) -> dict[str, int]:
        """All that was left out so far, by reason: `index_skipped` and instances of images read so far."""
        total = Counter(self._index_skips)
        for skips in self._sample_skips.values():
            total.update(skips)
        return dict(total)


def _read_instance(
    annotation: dict[str, Any], stated_size: tuple[int, int], image_size: tuple[int, ...]
) -> Instance | str:
    """The instance, or the reason why it is left out."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return EMPTY_MASK
    if stated_size != image_size:
        return OTHER_SIZE
    try:
        rle = segmentation_to_rle(segmentation, stated_size)
    except ValueError:
        return DAMAGED_MASK
    if tuple(rle["size"]) != image_size:
        return OTHER_SIZE
    if rle_codec.area(rle) == 0:
        return EMPTY_MASK
    xywh = annotation.get("bbox", rle_codec.toBbox(rle).tolist())
    if not is_xywh(xywh) or xywh[2] <= 0 or xywh[3] <= 0:
        return EMPTY_BOX
    box = xyxy(xywh)
    if not touches(box, stated_size):
        return OUTSIDE_BOX
    category = annotation.get("category_id", 1)
    return Instance(
        id=annotation["id"],
        rle=rle,
        box=box,
        category_id=category if is_int(category) else 1,
        is_crowd=bool(annotation.get("iscrowd", 0)),
        corners=_corners(segmentation),
    )


def _corners(segmentation: Any) -> tuple[tuple[float, float], ...] | None:
    """Of checked polygons all corners, one polygon after the other; None for run lengths."""
    if not isinstance(segmentation, list):
        return None
    return tuple(
        (float(x), float(y))
        for polygon in segmentation
        for x, y in zip(polygon[::2], polygon[1::2], strict=True)
    )


def _category_names(content: dict[str, Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in content.get("categories") or []:
        if not isinstance(category, dict) or not is_int(category.get("id")):
            raise ValueError(f"{path}: expected every category to have an integer id, got {category!r}")
        names[category["id"]] = str(category.get("name", category["id"]))
    return names


def _image_sizes(records: list[Any], path: Path) -> dict[int, tuple[int, int]]:
    """(height, width) by image id, in the order of the file."""
    sizes: dict[int, tuple[int, int]] = {}
    for position, record in enumerate(records):
        if not (
            isinstance(record, dict)
            and any(isinstance(record.get(key), str) for key in ("file_name", "coco_url"))
            and all(is_int(record.get(key)) for key in ("id", "height", "width"))
            and record["height"] > 0
            and record["width"] > 0
        ):
            raise ValueError(f"{path}: image {position}: expected file_name and integers id, height, width")
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = record.get(key, [])
            if not (isinstance(ids, list) and all(map(is_int, ids))):
                raise ValueError(f"{path}: image {position}: expected {key} to be a list of integers")
        if record["id"] in sizes:
            raise ValueError(f"{path}: expected unique image ids, got {record['id']} twice")
        sizes[record["id"]] = (record["height"], record["width"])
    return sizes


def _file_name(record: dict[str, Any]) -> str:
    """Of an image, relative to the folder of images: `file_name`, or `val2017/000000000139.jpg` of a `coco_url`."""
    name = record.get("file_name")
    return name if isinstance(name, str) else "/".join(record["coco_url"].split("/")[-2:])


def _find_images(records: list[dict[str, Any]], annotations_json: Path) -> Path:
    """The folder of the images, see `CocoDataset`."""
    if not records:
        raise ValueError(f"{annotations_json}: expected images, the file lists none")
    own = annotations_json.resolve().parent
    split = annotations_json.stem.removeprefix("instances_")
    places = [own / "images", own, own.parent, own.parent / split]
    names = [_file_name(record) for record in records[:_LOOKED_FOR]]
    for place in places:
        if any((place / name).is_file() for name in names):
            return place
    tried = ", ".join(map(str, places))
    raise ValueError(f"{annotations_json}: expected its images, such as {names[:1]}, in one of: {tried}")
