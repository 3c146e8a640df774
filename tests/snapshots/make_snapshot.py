"""Write the public API of a TensorRT Python module as JSON: python make_snapshot.py MODULE [NAME] > FILE.

One line a class, one level deep: the module's public names, and for each class its public attributes with their kind
(method, property, value) or, for an enum, its members. The bindings of ``tensorrt`` import without a GPU when empty
stand-ins for libnvinfer, libnvonnxparser and libnvinfer_plugin are found first; that serves this script alone.
"""

import importlib
import json
import sys
from types import ModuleType
from typing import Any


def public(thing: object) -> list[str]:
    """Every public name of ``thing``, sorted."""
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def kind_of(owner: type, name: str) -> str:
    """Tell a class's methods, properties and plain values apart."""
    attribute = getattr(owner, name)
    if isinstance(attribute, property):
        return "property"
    return "method" if callable(attribute) and not isinstance(attribute, type) else "value"


def describe_class(owner: type) -> dict[str, Any]:
    """Give an enum's members with their numbers, or a class's attributes with their kinds."""
    members = getattr(owner, "__members__", None)
    if members is not None:
        return {"members": {name: int(member) for name, member in members.items()}}
    return {"attributes": {name: kind_of(owner, name) for name in public(owner)}}


def describe(module: ModuleType, name: str) -> dict[str, Any]:
    """Describe a whole module; ``name`` is what users import it as."""
    names = {item: getattr(module, item) for item in public(module)}
    return {
        "module": name,
        "version": module.__version__,
        "classes": {item: describe_class(thing) for item, thing in names.items() if isinstance(thing, type)},
        "names": sorted(
            item for item, thing in names.items() if not isinstance(thing, type) and not isinstance(thing, ModuleType)
        ),
    }


def main(argv: list[str]) -> int:
    """Print the snapshot of the module named first, called by the second name where that differs."""
    module = importlib.import_module(argv[0])
    snapshot = describe(module, argv[-1])
    classes = snapshot.pop("classes")
    head = json.dumps(snapshot)[:-1]
    lines = (f"{json.dumps(name)}: {json.dumps(classes[name], sort_keys=True)}" for name in sorted(classes))
    print(head + ', "classes": {\n' + ",\n".join(lines) + "\n}}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
