"""Batches of augmented samples made on an accelerator, distributed as those of `samples.py`.

One process makes a few hundred samples a second on a CPU; a GPU trains on thousands. Here every step of the
augmentation works on the whole batch and no value returns to the host. `DeviceSampler.batch` returns what the collated
samples of `SampleSet` would be: the same keys, shapes, dtypes and coordinate frames.

Against aliasing, pictures and masks are read from the mipmap level whose resolution is nearest. Four times as many
reads, as supersampling needs, come hardly closer to the area average that `samples.py` computes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from augmentation import FINE, MEAN, MIN_PIXELS, STD
from device_batches import CROP, Crops, Draw, Objects, Paste, Picks, Placement, repeat_usable, rows_of
from device_images import area_scale, fill_windows, photometric, warp_images
from device_pictures import DevicePictures
from device_prompts import cell_centers, innermost, profile_ends, random_inside, surroundings
from samples import BOX_LABELS, NOT_A_POINT, SMALL, SampleSpec

SPARE = 1.25
"""Placements drawn per sample: those without an object of sufficient size are dropped."""

CANDIDATES = 4
"""Instances per prompt that are tested for visibility; beyond them, crowded pictures lose some choice."""

PROBES = 32
"""Points on each side of the grid over an instance's box that measures its visible share."""

PASTED = 0.3
"""Share of samples that get a pasted object, unless they show microscopy. They come first in a batch."""


class DeviceSampler:
    """Endless deterministic batches of samples on a device.

    Args:
        pictures: Pictures and masks.
        spec: Options of the augmentation, as for `SampleSet`.
        batch: Samples in a batch.
        seed: Seed of all batches.
    """

    def __init__(self, pictures: DevicePictures, spec: SampleSpec, batch: int, seed: int) -> None:
        self.pictures, self.spec, self.size, self.seed = pictures, spec, batch, seed
        self.device = device = pictures.device
        known = [s for s in spec.weights if s in pictures.sources]
        shares = torch.zeros(len(pictures.sources))
        for source in known:
            shares[pictures.sources.index(source)] = spec.weights[source]
        self.share_ends = (shares.cumsum(0) / shares.sum()).to(device)
        paste_from = "objects_train" if "objects_train" in known else known[0]
        self.paste_source = pictures.sources.index(paste_from)

        def is_source(*names: str) -> Tensor:
            return torch.tensor([source in names for source in pictures.sources], device=device)

        self.is_microscopy = is_source("nuclei_train")
        self.is_turned = is_source("nuclei_train", "scenes")
        self.is_detailed = is_source("objects_train")
        self.most_instances = int(pictures.instance_count.max())
        self.mean = torch.tensor(MEAN, device=device)
        self.std = torch.tensor(STD, device=device)
        self.border = 255 * self.mean
        self.zero = torch.zeros(1, device=device)
        self.nothing = torch.zeros(0, spec.window * FINE, spec.window * FINE, device=device)

    @torch.no_grad()
    def batch(self, number: int) -> dict[str, Tensor]:
        """Make batch `number`.

        Returns:
            pixels: float [B, 3, S, S], normalized; zero where a whole picture leaves the window empty.
            targets: uint8 [B, P, S / 2, S / 2], coverage of each low-resolution cell.
            coords: float [B, P, 2, 2], (x, y) in window pixels: the corners of a box, or a point and padding.
            labels: int64 [B, P, 2], labels of the coords.
            regions: float [B, P, 4], (x0, y0, x1, y1) in window pixels, the object's surroundings.
            region_targets: uint8 [B, P, REGION, REGION] in {0, 255}, the mask on a grid over the region.
        """
        draw = Draw(self.device, self.seed, number)
        placed = self.place(draw, math.ceil(self.size * SPARE))
        pasted = self.paste(draw, placed)
        picks, usable = self.pick(draw, placed, pasted)
        keep = repeat_usable(usable, self.size)
        some = len(pasted.image)
        # A repeated window beyond the first ones would lack its pasted object.
        complete = (keep < some) <= (torch.arange(self.size, device=self.device) < some)
        is_pasted = keep[:some] < some
        pasted = rows_of(pasted, keep[:some].clamp(max=some - 1)) if some else pasted
        pasted = replace(pasted, cover=pasted.cover * is_pasted[:, None, None])
        placed, picks = rows_of(placed, keep), rows_of(picks, keep)

        pixels = self.render_image(draw, placed, pasted)
        objects = self.objects(placed, pasted, picks)
        crops = self.crops(objects)
        boxes = self.boxes(crops, objects)
        regions = surroundings(draw, boxes)
        x, y = cell_centers(regions)
        inside = self.cover(objects, x[..., None, :], y[..., None], 1 / FINE) > 0.5
        coords, labels = self.prompts(draw, crops, boxes, regions, inside)
        of_objects = {
            "targets": self.targets(objects), "coords": coords, "labels": labels,
            "regions": regions, "region_targets": inside.to(torch.uint8) * 255,
        }  # fmt: skip
        # The probes estimate visible areas. What turns out too small gives way to other objects of its window, and a
        # window without any to another one.
        area = (crops.cover > 0.5).sum((2, 3)) * crops.step[..., 0].square()
        large = (area >= MIN_PIXELS) & complete[:, None]
        windows = repeat_usable(large.any(1), self.size)
        order = repeat_usable(large, large.shape[1])[windows]
        chosen = {name: value[windows[:, None], order] for name, value in of_objects.items()}
        return {"pixels": pixels[windows]} | chosen

    def place(self, draw: Draw, count: int) -> Placement:
        """Draw pictures and their placement, as `SampleSet._placement` does."""
        spec, pictures, window = self.spec, self.pictures, float(self.spec.window)
        source = torch.bucketize(draw.uniform(count), self.share_ends, right=True)
        source = source.clamp(max=len(self.share_ends) - 1)
        lists = pictures.lists
        image = lists.pictures[lists.first[source] + draw.index(lists.count[source])]
        middle = pictures.instance_first[image] + draw.index(pictures.instance_count[image])
        small = torch.zeros(count, device=self.device)
        kind = draw.uniform(count) * len(SMALL)
        favored = draw.chance(spec.small, count)
        for k, limit in enumerate(SMALL):
            lists = pictures.small_lists[k]
            use = favored & (kind >= k) & (kind < k + 1) & (lists.count[source] > 0)
            place = lists.first[source] + draw.index(lists.count[source])
            other = (
                lists.pictures[place.clamp(max=max(0, len(lists.pictures) - 1))]
                if len(lists.pictures)
                else image
            )
            image = torch.where(use, other, image)
            first = pictures.small_first[other]
            center = first + draw.index((pictures.small_end[other, k] - first).clamp(min=0))
            middle = torch.where(use, center, middle)
            small = torch.where(use, limit, small)

        height, width = pictures.size[image].unbind(1)
        long_side = torch.maximum(height, width)
        flip = torch.where(draw.chance(0.5, count), -1.0, 1.0)
        turns = torch.where(self.is_turned[source], (draw.uniform(count) * 4).floor().clamp(max=3), 0.0)
        tilt = torch.where(draw.chance(0.35, count), 8 * draw.normal(count), 0.0)
        whole = draw.chance(spec.whole, count)
        angle = torch.deg2rad(90 * turns + torch.where(whole, 0.0, tilt))

        detailed = self.is_detailed[source]
        low = torch.where(detailed, math.log(0.4), math.log(0.6))
        high = torch.where(detailed, math.log(1.5), math.log(1.7))
        high = torch.where(small > 0, 0.0, high)
        zoom = (low + (high - low) * draw.uniform(count)).exp()
        scale = torch.where(whole, window, spec.frame * zoom) / long_side
        turned = torch.where((turns % 2 == 0)[:, None], torch.stack([width, height], 1), pictures.size[image])
        content = (turned * scale[:, None]).round().clamp(min=1)
        content = torch.where(whole[:, None], content, window)
        box = pictures.box[middle]
        center_from = torch.where(
            whole[:, None], torch.stack([width, height], 1) / 2, box[:, :2] + box[:, 2:] / 2
        )
        shift = draw.uniform(count, 2, low=-0.4, high=0.4) * window
        center_to = torch.where(whole[:, None], content / 2, window / 2 + shift)

        cos, sin = angle.cos() * scale, angle.sin() * scale
        linear = torch.stack([cos * flip, -sin, sin * flip, cos], 1).reshape(-1, 2, 2)
        offset = center_to - (linear @ center_from[..., None])[..., 0]
        zero = torch.zeros_like(width)
        corners = torch.stack([zero, zero, width, zero, zero, height, width, height], 1).reshape(-1, 4, 2)
        ends = corners @ linear.mT + offset[:, None]
        filled = fill_windows(draw, ends.amin(1), ends.amax(1), window)
        offset = offset + torch.where((content == window).all(1, keepdim=True), filled, 0.0)
        matrix = torch.cat([linear, offset[..., None]], 2)
        return Placement(image, source, small, matrix, content)

    def paste(self, draw: Draw, placed: Placement) -> Paste:
        """Draw objects of other pictures to paste over the first windows, as `SampleSet._paste` does."""
        pictures, window, count = self.pictures, self.spec.window, round(PASTED * self.size)
        content, lists = placed.content[:count], pictures.lists
        among = lists.count[self.paste_source].expand(count)
        image = lists.pictures[lists.first[self.paste_source] + draw.index(among)]
        instance = pictures.instance_first[image] + draw.index(pictures.instance_count[image])
        x, y, w, h = pictures.box[instance].unbind(1)
        side = draw.uniform(count, low=math.log(12), high=math.log(window * 0.6)).exp()
        scale = side / torch.maximum(w, h)
        to = draw.uniform(count, 2) * content
        zero = torch.zeros_like(scale)
        rows = scale, zero, to[:, 0] - (x + w / 2) * scale, zero, scale, to[:, 1] - (y + h / 2) * scale
        matrix = torch.stack(rows, 1).reshape(-1, 2, 3)
        active = self.visible(instance[:, None], matrix, content, None)[:, 0]
        active &= ~self.is_microscopy[placed.source[:count]]
        objects = Objects(instance[:, None], active[:, None], matrix[:, None], content, self.nothing)
        steps = (torch.arange(window * FINE, device=self.device) + 0.5) / FINE
        cover = self.cover(objects, steps, steps[:, None], 1 / FINE)[:, 0]
        return Paste(active, image, instance, matrix, cover * active[:, None, None])

    def pick(self, draw: Draw, placed: Placement, pasted: Paste) -> tuple[Picks, Tensor]:
        """Draw the prompted instances: each visible one once in random order, then again.

        Returns:
            The instances, and bool [n]: whether the window shows any.
        """
        pictures, count, some = self.pictures, len(placed.image), len(pasted.image)
        first, total = pictures.instance_first[placed.image], pictures.instance_count[placed.image]
        place = torch.arange(self.most_instances, device=self.device)
        instance = torch.minimum(first[:, None] + place, (first + total - 1)[:, None])

        def is_large(instance: Tensor, matrix: Tensor, small: Tensor) -> Tensor:
            """Return 1 for objects that come after the small ones, where those are preferred."""
            side = pictures.side[instance] * area_scale(matrix).sqrt()
            return ((side > small) & (small > 0)).float()

        key = draw.uniform(count, self.most_instances)
        key = key + is_large(instance, placed.matrix[:, None], placed.small[:, None])
        near = self.touches(instance, placed.matrix) & (place < total[:, None])
        key = torch.where(near, key, torch.inf)
        key, order = key.topk(min(CANDIDATES * self.spec.prompts, self.most_instances), largest=False)
        instance = instance.gather(1, order)
        seen = self.visible(instance, placed.matrix, placed.content, pasted.cover) & key.isfinite()
        # The pasted object takes its turn among the others.
        own = draw.uniform(some) + is_large(pasted.instance, pasted.matrix, placed.small[:some])
        own = F.pad(torch.where(pasted.active, own, torch.inf), (0, count - some), value=torch.inf)
        key = torch.cat([torch.where(seen, key, torch.inf), own[:, None]], 1)
        instance = torch.cat([instance, F.pad(pasted.instance, (0, count - some))[:, None]], 1)
        key, order = key.sort(1)
        usable = key.isfinite().sum(1)
        turn = torch.arange(self.spec.prompts, device=self.device) % usable.clamp(min=1)[:, None]
        chosen = order.gather(1, turn)
        return Picks(instance.gather(1, chosen), chosen == instance.shape[1] - 1), usable > 0

    def touches(self, instance: Tensor, matrix: Tensor) -> Tensor:
        """Return whether instances' boxes [n, C] reach into the windows of matrix [n, 2, 3] by two pixels."""
        x, y, w, h = self.pictures.box[instance].unbind(-1)
        corners = torch.stack(
            [torch.stack([x + i * w, y + j * h], -1) for i in (0, 1) for j in (0, 1)], 2
        )  # [n, C, 4, 2]
        ends = corners @ matrix[:, None, :, :2].mT + matrix[:, None, None, :, 2]
        low, high = ends.amin(2), ends.amax(2)
        return (high.amin(-1) >= 2) & (low.amax(-1) <= self.spec.window - 2)

    def visible(self, instance: Tensor, matrix: Tensor, content: Tensor, hidden: Tensor | None) -> Tensor:
        """Return which instances show enough of themselves, bool [n, C].

        A quarter of an instance must lie inside the content, at least `MIN_PIXELS` must remain, and a pasted object
        may hide up to 60 % of it. The shares are measured on a grid of probes over the instance's box.

        Args:
            instance: int64 [n, C].
            matrix: float [n, 2, 3] from picture to window.
            content: float [n, 2], (width, height) of the window that the picture covers.
            hidden: float [k, FINE * S, FINE * S], coverage of what is pasted over the first k windows.
        """
        box = self.pictures.box[instance]
        steps = (torch.arange(PROBES, device=self.device) + 0.5) / PROBES
        x, y = (steps * box[..., 2:3])[..., None, :], (steps * box[..., 3:])[..., None]
        spacing = (box[..., 2] * box[..., 3]).sqrt() / PROBES
        masks = self.pictures.masks
        level = masks.level(1 / spacing, 1.0).flatten()
        cover = masks.sample(instance.flatten(), level, x.flatten(0, 1), y.flatten(0, 1), self.zero)
        cover = cover[..., 0].reshape(*instance.shape, PROBES, PROBES) / 255
        x, y = x + box[..., :1, None], y + box[..., 1:2, None]
        to_window = matrix[:, None, None, None]
        points = torch.stack(
            [to_window[..., i, 0] * x + to_window[..., i, 1] * y + to_window[..., i, 2] for i in (0, 1)], -1
        )
        inside = ((points >= 0) & (points < content[:, None, None, None])).all(-1)
        probe_area = spacing.square() * area_scale(matrix)[:, None]

        def area(cover: Tensor) -> Tensor:
            return (cover > 0.5).sum((2, 3)) * probe_area

        shown = inside * cover
        enough = (area(shown) >= MIN_PIXELS) & (area(shown) >= 0.25 * area(cover))
        enough &= self.touches(instance, matrix)
        if hidden is None:
            return enough
        left = shown * (1 - self.hidden(hidden, points))
        return enough & (area(left) >= MIN_PIXELS) & (left.sum((2, 3)) > 0.4 * shown.sum((2, 3)))

    def hidden(self, hidden: Tensor, points: Tensor) -> Tensor:
        """Return how far pasted objects cover points, float [n, P, H, W].

        Args:
            hidden: float [k, FINE * S, FINE * S], coverage of what is pasted over the first k windows.
            points: float [n, P, H, W, 2], (x, y) in window pixels.
        """
        grid = 2 * points[: len(hidden)] / self.spec.window - 1
        over = F.grid_sample(hidden[:, None], grid.flatten(1, 2), align_corners=False)[:, 0]
        rest = points.new_zeros(len(points) - len(hidden), *points.shape[1:-1])
        return torch.cat([over.reshape(grid.shape[:-1]), rest])

    def objects(self, placed: Placement, pasted: Paste, picks: Picks) -> Objects:
        """Return the picked instances with their placement."""
        of_pasted = torch.cat([pasted.matrix, placed.matrix[len(pasted.matrix) :]])[:, None]
        matrix = torch.where(picks.pasted[..., None, None], of_pasted, placed.matrix[:, None])
        return Objects(picks.instance, picks.pasted, matrix, placed.content, pasted.cover)

    def cover(self, objects: Objects, x: Tensor, y: Tensor, step: Tensor | float) -> Tensor:
        """Return what objects cover at points of their windows, without what is hidden: float [n, P, H, W], 0 to 1.

        Args:
            objects: P objects in each of n windows.
            x: float, columns of the points in window pixels, broadcastable to [n, P, H, W] with y.
            y: The same for rows.
            step: Distance of the points in window pixels, float [n, P] or one for all, for the resolution to read.
        """
        a, b, c, d = (objects.matrix[..., i, j, None, None] for i in (0, 1) for j in (0, 1))
        u, v = x - objects.matrix[..., 0, 2, None, None], y - objects.matrix[..., 1, 2, None, None]
        determinant = a * d - b * c
        left, top = self.pictures.box[objects.instance][..., None, None, :2].unbind(-1)
        in_picture = (d * u - b * v) / determinant - left, (a * v - c * u) / determinant - top
        masks = self.pictures.masks
        level = masks.level(area_scale(objects.matrix).sqrt() / step, 0.6)
        item = objects.instance.flatten()
        cover = masks.sample(item, level.flatten(), *(p.flatten(0, 1) for p in in_picture), self.zero)
        width, height = objects.content[:, None, None, None].unbind(-1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        cover = inside * cover.reshape(*objects.instance.shape, *cover.shape[1:3]) / 255
        if len(objects.hidden) == 0:
            return cover
        points = torch.stack(torch.broadcast_tensors(x, y), -1).expand(*cover.shape, 2)
        return cover * (1 - self.hidden(objects.hidden, points) * ~objects.pasted[..., None, None])

    def crops(self, objects: Objects) -> Crops:
        """Render each object on a grid of its own."""
        x, y, w, h = self.pictures.box[objects.instance].unbind(-1)
        corners = torch.stack([torch.stack([x + i * w, y + j * h], -1) for i in (0, 1) for j in (0, 1)], -2)
        corners = corners @ objects.matrix[..., :2].mT + objects.matrix[..., None, :, 2]
        limit = objects.content[:, None]
        low, high = (torch.minimum(end.clamp(min=0), limit) for end in (corners.amin(2), corners.amax(2)))
        # A cell beyond each end, on the lattice of the fine pixels.
        low = (low * FINE - 1).floor() / FINE
        size = (high - low).amax(-1, keepdim=True) + 1 / FINE
        step = (size / CROP).clamp(min=1 / FINE)
        crops = Crops(low, low, step)
        x, y = crops.centers()
        return replace(crops, cover=self.cover(objects, x[..., None, :], y[..., None], step[..., 0]))

    def boxes(self, crops: Crops, objects: Objects) -> Tensor:
        """Return the boxes of objects, float [n, P, 4], (x0, y0, x1, y1) in window pixels.

        As in `samples.subpixel_box`, they end where the coverage of rows and columns crosses one half.
        """
        ends = [profile_ends(crops.cover.amax(dim).flatten(0, 1)) for dim in (2, 3)]
        (x0, x1), (y0, y1) = ([end.reshape(crops.step.shape[:2]) for end in pair] for pair in ends)
        boxes = torch.stack([x0, y0, x1, y1], -1) * crops.step + crops.low.repeat(1, 1, 2)
        return torch.minimum(boxes.clamp(min=0), objects.content.repeat(1, 2)[:, None])

    def targets(self, objects: Objects) -> Tensor:
        """Render low-resolution targets: uint8 [n, P, S / 2, S / 2]."""
        steps = torch.arange(self.spec.window, device=self.device) + 0.5
        cover = self.cover(objects, steps, steps[:, None], 1.0)
        return (F.avg_pool2d(cover, 2) * 255).round().to(torch.uint8)

    def render_image(self, draw: Draw, placed: Placement, pasted: Paste) -> Tensor:
        """Render, paste, augment and normalize the windows: float [n, 3, S, S]."""
        window, images = self.spec.window, self.pictures.images
        image = warp_images(images, placed.image, placed.matrix, window, self.border)
        if some := len(pasted.image):
            over = warp_images(images, pasted.image, pasted.matrix, window, self.border)
            alpha = F.avg_pool2d(pasted.cover[:, None], FINE)
            image[:some] = (image[:some] * (1 - alpha) + over * alpha).floor()
        image = photometric(draw, image, self.is_microscopy[placed.source])
        place = torch.arange(window, device=self.device)
        inside_x, inside_y = (place < end[:, None] for end in placed.content.unbind(1))
        pixels = (image / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        # The processor pads with zeros after normalization.
        return pixels * (inside_x[:, None] & inside_y[:, :, None])[:, None]

    def prompts(
        self, draw: Draw, crops: Crops, boxes: Tensor, regions: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw one prompt per object: coords [n, P, 2, 2] in window pixels and labels [n, P, 2].

        A point lies at the mask's innermost place or at a random one; a box is exact, or loose by a few percent.
        """
        shape = boxes.shape[:2]
        kind = draw.uniform(*shape)
        # Users draw boxes loosely, detectors less so, annotations fit exactly.
        relative = torch.where(kind < 0.5, 0.0, torch.where(kind < 0.75, 0.015, 0.08))
        size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
        loose = boxes + (draw.normal(*shape, 4) * relative[..., None]).clamp(-0.2, 0.2) * size
        degenerate = (loose[..., 2:] - loose[..., :2] < 1).any(-1, keepdim=True)
        corners = torch.where(degenerate, boxes, loose).reshape(*shape, 2, 2)
        point = torch.where(
            (draw.chance(0.5, *shape) & inside.any(-1).any(-1))[..., None],
            innermost(regions, inside),
            random_inside(draw, crops),
        )
        # The model adds half a pixel to every prompt, as the published one does.
        points = torch.stack([point - 0.5, torch.zeros_like(point)], 2)
        is_box = draw.chance(self.spec.box_share, *shape)
        box_labels, point_labels = (
            torch.stack([torch.full_like(is_box, value, dtype=torch.long) for value in pair], -1)
            for pair in (BOX_LABELS, (1, NOT_A_POINT))
        )
        coords = torch.where(is_box[..., None, None], corners, points)
        return coords, torch.where(is_box[..., None], box_labels, point_labels)
