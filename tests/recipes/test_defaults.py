"""One list of defaults for `saqsam.quantize`, recipes and the command line."""

import inspect

from saqsam.cli.options import QuantizeOptions
from saqsam.data.open import SCENES
from saqsam.ptq.pipeline import quantize
from saqsam.recipes import catalog
from saqsam.recipes.methods import METHODS
from saqsam.recipes.presets import EFFORTS, recipe_for
from saqsam.recipes.specs import Calibration


def test_the_defaults_exist() -> None:
    assert catalog.DEFAULT_METHOD in METHODS
    assert catalog.DEFAULT_EFFORT == catalog.AUTO_EFFORT
    assert catalog.AUTO_EFFORT not in EFFORTS
    assert catalog.DEFAULT_CALIBRATION == SCENES


def test_library_and_command_line_share_them() -> None:
    command = {option.name: option.default for option in QuantizeOptions.parameters()}
    library = {name: option.default for name, option in inspect.signature(quantize).parameters.items()}
    recipe = recipe_for(command["method"], command["bits"], command["effort"])
    assert recipe == recipe_for(library["recipe"])
    assert recipe.calibration == Calibration(images=command["images"], seed=command["seed"])
    assert (command["calibration"], command["memory"]) == (library["calibration"], library["memory"])
