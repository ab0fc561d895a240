"""Data sets: the bundled scenes, folders of images, COCO, ADE20K, detections and label maps."""

from saqsam.data.ade20k import AdeDataset
from saqsam.data.coarse_labels import SimulatedLabels
from saqsam.data.coco import CocoDataset
from saqsam.data.datasets import Dataset, Instance, Sample, open_dataset
from saqsam.data.detections import Detections, ImageDetections, load_detections
from saqsam.data.images import ImageFolder, list_images, read_image
from saqsam.data.label_maps import FolderLabels, LabelMaps, truth_labels

__all__ = [
    "AdeDataset",
    "CocoDataset",
    "Dataset",
    "Detections",
    "FolderLabels",
    "ImageDetections",
    "ImageFolder",
    "Instance",
    "LabelMaps",
    "Sample",
    "SimulatedLabels",
    "list_images",
    "load_detections",
    "open_dataset",
    "read_image",
    "truth_labels",
]
