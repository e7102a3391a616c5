"""The linear families, one file each: a class with its factors, counts, initialisation and products.

To add a family, put a file with a ``@register``-ed class into this folder; it is found by itself.
"""

from importlib import import_module
from pkgutil import iter_modules

from trainer.models.structures.base import Fan, Shape, Structure, register
from trainer.models.structures.dense import Dense
from trainer.models.structures.naming import budget_fraction, structure_from, structure_label

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Dense",
    "Fan",
    "Shape",
    "Structure",
    "budget_fraction",
    "register",
    "structure_from",
    "structure_label",
]
