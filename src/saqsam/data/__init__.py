"""Datasets: bundled scenes, lists and folders of images, COCO, LVIS, DOTA, ADE20K and mask folders; detections.

May import `utils`.
"""

from saqsam.data.ade20k import AdeDataset
from saqsam.data.coco import CocoDataset
from saqsam.data.detections import Detections, DetectionSource, ImageDetections, load_detections
from saqsam.data.dota import DotaDataset
from saqsam.data.image_list import ImageList
from saqsam.data.images import ImageFolder, ImageNote, list_images, read_image, read_image_with_notes
from saqsam.data.label_maps import FolderLabels, LabelMaps, truth_labels
from saqsam.data.mask_pairs import MaskPairDataset
from saqsam.data.open import DatasetSource, as_dataset, open_dataset
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.scenes.generate import Scene, generate_scene
from saqsam.data.simulated_detections import SimulatedDetections
from saqsam.data.simulated_labels import SimulatedLabels
from saqsam.data.types import Dataset, Instance, Sample

__all__ = [
    "AdeDataset",
    "CocoDataset",
    "Dataset",
    "DatasetSource",
    "DetectionSource",
    "Detections",
    "DotaDataset",
    "FolderLabels",
    "ImageDetections",
    "ImageFolder",
    "ImageList",
    "ImageNote",
    "Instance",
    "LabelMaps",
    "MaskPairDataset",
    "Sample",
    "Scene",
    "ScenesDataset",
    "SimulatedDetections",
    "SimulatedLabels",
    "as_dataset",
    "generate_scene",
    "list_images",
    "load_detections",
    "open_dataset",
    "read_image",
    "read_image_with_notes",
    "truth_labels",
]
