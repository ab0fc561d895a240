"""Data sets: the bundled scenes, folders of images, COCO and DOTA annotations, and detections."""

from saqsam.data.coco import CocoDataset
from saqsam.data.datasets import Dataset, Instance, Sample, open_dataset
from saqsam.data.detections import Detections, DetectionSource, ImageDetections, load_detections
from saqsam.data.dota import DotaDataset
from saqsam.data.images import ImageFolder, list_images, read_image
from saqsam.data.simulated_detections import SimulatedDetections

__all__ = [
    "CocoDataset",
    "Dataset",
    "DetectionSource",
    "Detections",
    "DotaDataset",
    "ImageDetections",
    "ImageFolder",
    "Instance",
    "Sample",
    "SimulatedDetections",
    "list_images",
    "load_detections",
    "open_dataset",
    "read_image",
]
