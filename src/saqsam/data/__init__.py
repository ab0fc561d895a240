"""Data sets: the bundled scenes, folders of images, COCO, DOTA and ADE20K; detections and label maps."""

from saqsam.data.ade20k import AdeDataset
from saqsam.data.coco import CocoDataset
from saqsam.data.detections import Detections, DetectionSource, ImageDetections, load_detections
from saqsam.data.dota import DotaDataset
from saqsam.data.images import ImageFolder, ImageNote, list_images, read_image, read_image_with_notes
from saqsam.data.label_maps import FolderLabels, LabelMaps, truth_labels
from saqsam.data.mask_pairs import MaskPairDataset
from saqsam.data.open import open_dataset
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Dataset, Instance, Sample

__all__ = [
    "AdeDataset",
    "CocoDataset",
    "Dataset",
    "DetectionSource",
    "Detections",
    "DotaDataset",
    "FolderLabels",
    "ImageDetections",
    "ImageFolder",
    "ImageNote",
    "Instance",
    "LabelMaps",
    "MaskPairDataset",
    "Sample",
    "SimulatedDetections",
    "SimulatedLabels",
    "list_images",
    "load_detections",
    "open_dataset",
    "read_image",
    "read_image_with_notes",
    "truth_labels",
]
