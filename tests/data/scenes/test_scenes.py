"""Procedural scenes: equal bytes for equal seeds, masks that follow the drawing, and errors."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from saqsam.data.scenes.canvas import MIN_VISIBLE_PIXELS, Canvas, Look
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.scenes.generate import CATEGORIES, generate_scene
from saqsam.data.scenes.layouts import STYLES
from saqsam.data.scenes.shapes import SHAPES, Piece, place, rasterize
from saqsam.data.scenes.textures import FIELDS, Material, paint

SIZE = (128, 160)


def digest(seed: int) -> str:
    scene = generate_scene(seed)
    return hashlib.sha256(
        scene.image.tobytes() + scene.masks.tobytes() + repr(scene.kinds).encode()
    ).hexdigest()


def square(x0: float, y0: float, x1: float, y1: float) -> list[Piece]:
    return [Piece(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64))]


def plain(level: float) -> Material:
    color = np.full(3, level, dtype=np.float32)
    return Material("gradient", color, color, 8.0)


def empty_canvas(height: int = 60, width: int = 80) -> Canvas:
    return Canvas(np.random.default_rng(0), np.full((height, width, 3), 20, dtype=np.float32))


@pytest.fixture(scope="module")
def scenes():
    return [generate_scene(seed, size=SIZE, style=style) for style in STYLES for seed in range(8)]


def test_same_seed_gives_same_bytes_also_in_a_fresh_process():
    code = (
        "import hashlib; from saqsam.data.scenes.generate import generate_scene\n"
        "for seed in (3, 4):\n"
        "    s = generate_scene(seed)\n"
        "    data = s.image.tobytes() + s.masks.tobytes() + repr(s.kinds).encode()\n"
        "    print(hashlib.sha256(data).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.split() == [digest(3), digest(4)]
    assert digest(3) == digest(3)


def test_neighboring_and_huge_seeds_differ():
    seeds = [*range(12), 2**32, 2**32 + 1, 2**64, 2**100]
    images = {generate_scene(seed, size=(64, 64)).image.tobytes() for seed in seeds}
    assert len(images) == len(seeds)


def test_numpy_integer_seed_equals_int_seed():
    a, b = generate_scene(np.int64(7), size=(64, 64)), generate_scene(7, size=(64, 64))
    assert np.array_equal(a.image, b.image)


def test_types_and_shapes(scenes):
    for scene in scenes:
        count = len(scene.masks)
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*SIZE, 3)
        assert scene.image.flags.c_contiguous
        assert scene.masks.dtype == np.bool_
        assert scene.masks.shape == (count, *SIZE)
        assert count >= 1
        assert len(scene.kinds) == len(scene.parents) == count
        assert set(scene.kinds) <= CATEGORIES.keys()


def test_size_is_drawn_from_the_seed_within_bounds():
    sizes = {generate_scene(seed).image.shape[:2] for seed in range(12)}
    assert len(sizes) > 6
    assert all(192 <= side <= 384 for size in sizes for side in size)


@pytest.mark.parametrize("size", [(32, 32), (32, 200), (48, 40)])
def test_small_and_narrow_images_hold_an_instance(size):
    for seed in range(6):
        scene = generate_scene(seed, size=size)
        assert scene.image.shape[:2] == size
        assert len(scene.masks) >= 1


def test_top_level_masks_are_disjoint_and_so_are_parts(scenes):
    for scene in scenes:
        top = np.array([p < 0 for p in scene.parents])
        assert scene.masks[top].sum(axis=0).max() == 1
        if not top.all():
            assert scene.masks[~top].sum(axis=0).max() == 1


def test_parts_lie_strictly_inside_their_whole(scenes):
    parts = 0
    for scene in scenes:
        for k, whole in enumerate(scene.parents):
            if whole < 0:
                continue
            parts += 1
            assert whole < k
            assert scene.parents[whole] == -1
            assert not (scene.masks[k] & ~scene.masks[whole]).any()
            assert scene.masks[k].sum() < scene.masks[whole].sum()
    assert parts >= 10


def test_every_instance_is_visible_enough(scenes):
    assert min(int(m.sum()) for scene in scenes for m in scene.masks) >= MIN_VISIBLE_PIXELS == 48


def test_styles_differ_in_number_and_size_of_objects(scenes):
    by_style = {name: [s for s in scenes if s.style == name] for name in STYLES}
    assert all(len(group) == 8 for group in by_style.values())
    count = {name: np.mean([len(s.masks) for s in group]) for name, group in by_style.items()}
    assert count["clutter"] > count["objects"]
    assert all({"cell"} <= set(s.kinds) for s in by_style["cells"])
    assert any(p >= 0 for s in by_style["nested"] for p in s.parents)
    shares = [m.mean() for s in scenes for m in s.masks]
    assert min(shares) < 0.005
    assert max(shares) > 0.1


def test_pictures_are_neither_blank_nor_clipped(scenes):
    for scene in scenes:
        assert scene.image.std() > 3
        assert np.mean(scene.image == 255) < 0.5


def test_later_objects_occlude_and_hidden_ones_are_dropped():
    canvas = empty_canvas()
    canvas.add("hidden", square(12, 12, 28, 28), plain(90), Look())
    canvas.add("back", square(10, 10, 50, 50), plain(120), Look())
    canvas.add("front", square(30, 10, 60, 50), plain(220), Look())
    found = {entry.kind: mask for entry, _, mask in canvas.visible()}
    assert set(found) == {"back", "front"}
    assert found["back"].sum() == 20 * 40
    assert found["front"].sum() == 30 * 40
    assert np.allclose(canvas.image[found["back"]], 120)
    assert np.allclose(canvas.image[found["front"]], 220)
    # Antialiasing reaches one pixel beyond the masks, and no farther.
    canvas.image[9:51, 9:61] = 20
    assert np.allclose(canvas.image, 20)


@pytest.mark.parametrize(("right", "kept"), [(39.0, False), (29.0, True)])
def test_a_quarter_must_stay_visible(right, kept):
    canvas = empty_canvas()
    canvas.add("back", square(0, 0, 40, 40), plain(120), Look())
    canvas.add("front", square(0, 0, right, 40), plain(220), Look())
    assert ("back" in [entry.kind for entry, _, _ in canvas.visible()]) == kept


def test_parts_are_clipped_to_their_whole_and_hidden_with_it():
    canvas = empty_canvas()
    whole, raster = canvas.add("whole", square(10, 10, 40, 40), plain(100), Look())
    canvas.add_part(whole, raster, "part", square(30, 5, 70, 25), plain(200), Look())
    (_, _, outer), (entry, position, inner) = canvas.visible()
    assert (entry.kind, position) == ("part", 0)
    assert inner.sum() == 10 * 15
    assert not (inner & ~outer).any()
    assert np.allclose(canvas.image[inner], 200)
    assert np.allclose(canvas.image[:, 42:], 20)  # the part was cut off where its whole ends
    canvas.add("cover", square(0, 0, 80, 60), plain(50), Look())
    assert [e.kind for e, _, _ in canvas.visible()] == ["cover"]


def test_a_shadow_darkens_but_belongs_to_no_object():
    canvas = empty_canvas()
    look = Look(light=(1.0, 0.0), shadow=0.8, shadow_reach=8.0)
    canvas.add("thing", square(20, 20, 40, 40), plain(200), look)
    ((_, _, mask),) = canvas.visible()
    assert mask.sum() == 20 * 20
    assert canvas.image[30, 43].max() < 15
    assert not mask[30, 43]


@pytest.mark.parametrize("kind", SHAPES)
def test_mask_boundary_is_the_drawn_boundary(kind):
    rng = np.random.default_rng(5)
    for _ in range(4):
        canvas = empty_canvas(90, 90)
        shape = place(SHAPES[kind](rng), (45.3, 44.6), 33.0, rng.uniform(0, 6), 0.8)
        canvas.add(kind, shape, plain(220), Look())
        ((_, _, mask),) = canvas.visible()
        # The object is 220 on 20: the 50 % level of the antialiased edge is 120.
        assert np.array_equal(canvas.image[..., 0] > 120, mask)


def test_rasterized_area_equals_the_area_of_the_polygon():
    rng = np.random.default_rng(1)
    for _ in range(5):
        (piece,) = place(SHAPES["blob"](rng), (0.37, -3.2), 40.0, 0.3, 0.7)
        x, y = piece.points.T
        exact = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
        assert rasterize([piece]).alpha.sum() == pytest.approx(exact, rel=0.03)


def test_edges_survive_the_camera():
    """Across object boundaries the picture changes more than within objects, after all camera effects."""
    inside, across = [], []
    for seed in range(20):
        scene = generate_scene(seed, size=SIZE, style="clutter")
        label = (scene.masks * np.arange(1, len(scene.masks) + 1)[:, None, None]).sum(axis=0)
        step = np.abs(np.diff(scene.image.astype(float).mean(axis=2), axis=1))
        edge = np.diff(label, axis=1) != 0
        inside.append(step[~edge].mean())
        across.append(step[edge].mean())
    assert np.mean(across) > 2 * np.mean(inside)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (64, 48)])
def test_textures_fill_any_size_with_finite_values(field, size):
    color = np.array([10, 120, 240], dtype=np.float32)
    surface = paint(np.random.default_rng(2), Material(field, color, color[::-1], 9.0, 10.0, 5.0), size)
    assert surface.shape == (*size, 3)
    assert surface.dtype == np.float32
    assert np.isfinite(surface).all()
    assert surface.min() > -60
    assert surface.max() < 320


# pycocotools' decoder still speaks the array protocol of NumPy 1.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_dataset_samples_carry_tight_boxes_and_the_scene_masks():
    data = ScenesDataset(count=4, seed=9, size=SIZE)
    assert len(data) == 4
    assert data.name == "scenes"
    seen: set[int] = set()
    for i in range(4):
        sample = data[i]
        scene = generate_scene(data.scene_seed(i), size=SIZE)
        assert np.array_equal(sample.image, scene.image)
        assert sample.image_id == i
        assert len(sample.instances) == len(scene.masks)
        for instance, mask, kind in zip(sample.instances, scene.masks, scene.kinds, strict=True):
            x0, y0, x1, y1 = (int(v) for v in instance.box)
            assert instance.rle["size"] == list(SIZE)
            assert np.array_equal(instance.mask(), mask)
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()
            assert instance.category_id == CATEGORIES[kind]
            seen.add(instance.id)
    assert len(seen) == sum(len(data[i].instances) for i in range(4))


def test_splits_share_no_scene_and_indices_are_bounded():
    seeds = {ScenesDataset(50, seed=s).scene_seed(i) for s in range(6) for i in range(50)}
    assert len(seeds) == 300
    data = ScenesDataset(count=2, size=(64, 64))
    assert len([sample.image_id for sample in data]) == 2
    with pytest.raises(IndexError):
        data[2]
    assert ScenesDataset(5, size=(64, 64))[1].image.tobytes() == data[1].image.tobytes()


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_invalid_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        generate_scene(seed)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (64.0, 64), (64,), 64, (64, 64, 3), "64"])
def test_invalid_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"height|width|size"):
        generate_scene(0, size=size)


def test_other_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="style must be one of"):
        generate_scene(0, style="cubism")
    with pytest.raises(ValueError, match="count"):
        ScenesDataset(count=0)
    with pytest.raises(ValueError, match="seed"):
        ScenesDataset(seed=-3)
    with pytest.raises(ValueError, match="height"):
        ScenesDataset(size=(8, 64))
