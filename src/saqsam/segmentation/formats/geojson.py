"""GeoJSON: polygons with holes, in longitude and latitude for georeferenced images, and in pixels for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saqsam.segmentation.formats.registry import Context, Files
from saqsam.segmentation.objects import SegmentedImage
from saqsam.segmentation.outlines import Ring, outlines
from saqsam.utils.extras import install_command

_WGS84 = "EPSG:4326"

Geometry = dict[str, Any]


def geojson(image: SegmentedImage, *, tolerance: float) -> bytes:
    """Return a collection of the objects of an image; an empty mask has no geometry.

    Coordinates of a georeferenced TIFF are longitude and latitude (RFC 7946). Other images have no place on Earth:
    their coordinates are pixels, as QuPath and other tools for slides read them.

    Args:
        image: The image.
        tolerance: Of polygons, see `outlines`.

    Raises:
        ValueError: The image is a TIFF, and rasterio, which reads its place, is not installed.
    """
    place = None if image.path is None else _georeference(image.path)
    features = []
    for number, one in enumerate(image.objects, 1):
        polygons = [
            [_closed(part.outer), *(_closed(hole) for hole in part.holes)]
            for part in outlines(one.mask(), tolerance)
        ]
        geometry: Geometry | None = None
        if polygons:
            is_single = len(polygons) == 1
            kind = "Polygon" if is_single else "MultiPolygon"
            geometry = {"type": kind, "coordinates": polygons[0] if is_single else polygons}
        features.append(
            {
                "type": "Feature",
                "id": number,
                "geometry": geometry if place is None or geometry is None else place(geometry),
                "properties": {
                    "category": image.category(one),
                    "area_px": one.area,
                    "predicted_iou": round(one.predicted_iou, 6),
                    "stability_score": round(one.stability_score, 6),
                    "prompt": one.prompt,
                },
            }
        )
    document = {
        "type": "FeatureCollection",
        "frame": "pixels" if place is None else "longitude, latitude",
        "features": features,
    }
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


def _closed(ring: Ring) -> list[list[float]]:
    corners: list[list[float]] = ring.tolist()
    return [*corners, corners[0]]


def _georeference(path: Path) -> Callable[[Geometry], Geometry] | None:
    """Return what turns a geometry in pixels to longitude and latitude; None for an image without a place."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        import rasterio
        from rasterio.warp import transform_geom
    except ImportError:
        raise ValueError(
            f"{path}: geojson reads the place of a TIFF with rasterio: {install_command('geo')}"
        ) from None
    with rasterio.open(path) as file:
        crs, transform = file.crs, file.transform
    if crs is None or transform.is_identity:
        return None

    def place(geometry: Geometry) -> Geometry:
        is_single = geometry["type"] == "Polygon"
        polygons = [geometry["coordinates"]] if is_single else geometry["coordinates"]
        # Outer rings are counterclockwise by the numbers of their coordinates (RFC 7946); a y axis that points up turns
        # them.
        order = -1 if transform.determinant < 0 else 1
        a, b, c, d, e, f = transform[:6]
        projected = [
            [[[a * x + b * y + c, d * x + e * y + f] for x, y in ring[::order]] for ring in polygon]
            for polygon in polygons
        ]
        coordinates = projected[0] if is_single else projected
        turned: Geometry = transform_geom(crs, _WGS84, {"type": geometry["type"], "coordinates": coordinates})
        return {"type": turned["type"], "coordinates": turned["coordinates"]}

    return place


def geojson_files(image: SegmentedImage, context: Context) -> Files:
    """Yield the collection."""
    yield ".geojson", geojson(image, tolerance=context.tolerance)
