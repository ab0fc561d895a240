"""Data sets: the bundled scenes, folders of images, COCO instance files and detections."""

from saqsam.data.coco import CocoDataset
from saqsam.data.datasets import Dataset, Instance, Sample, open_dataset
from saqsam.data.detections import Detections, ImageDetections, load_detections
from saqsam.data.images import ImageFolder, list_images, read_image

__all__ = [
    "CocoDataset",
    "Dataset",
    "Detections",
    "ImageDetections",
    "ImageFolder",
    "Instance",
    "Sample",
    "list_images",
    "load_detections",
    "open_dataset",
    "read_image",
]
