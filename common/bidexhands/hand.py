"""The Shadow Hand of Bi-DexHands as an `MjSpec`, read from the copy that Gymnasium-Robotics bundles.

DexterousHands uses these very files (robot.xml, shared_asset.xml and the meshes are equal; of the tendons it keeps the
four that couple J0 to J1). Both hands of the benchmark are this right hand. The hand is by Shadow Robot Company,
OpenAI and Vikash Kumar, Apache-2.0; the files are read where they are installed, none is copied.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common.mamujoco_robots import mujoco

COUPLINGS = tuple(f"T_{finger}J1c" for finger in ("FF", "MF", "RF", "LF"))
# Collision bits: contype says what a geom is, conaffinity what it collides with. Hands meet objects and tables; inside
# a hand only the 19 pairs collide that its model lists; no hand reaches the floor before its episode ends.
HAND, GROUND, OBJECT = 1, 2, 4


def asset_folder() -> Path:
    """Gymnasium-Robotics' folder of model files. ImportError in one line if the package is not installed."""
    package = find_spec("gymnasium_robotics")  # located, not imported: only its files are needed
    if package is None or package.origin is None:
        raise ImportError(
            "the Shadow Hand's model files come with gymnasium-robotics: pip install 'gymnasium-robotics>=1.4'"
        )
    folder = Path(package.origin).parent / "envs" / "assets"
    if not (folder / "hand" / "robot.xml").is_file():
        raise ImportError(
            f"gymnasium-robotics lacks {folder / 'hand' / 'robot.xml'}: reinstall gymnasium-robotics>=1.4"
        )
    return folder


def hand_xml() -> str:
    """MJCF of one hand, its root `mount` at the origin, names without the asset's prefix `robot0:`."""
    folder = asset_folder()
    shared, assets, robot = (
        ElementTree.parse(folder / "hand" / name).getroot() for name in ("shared.xml", "shared_asset.xml", "robot.xml")
    )
    root = ElementTree.Element("mujoco", model="hand")
    ElementTree.SubElement(root, "compiler", angle="radian", meshdir=str(folder / "stls" / "hand"))
    for tag in ("default", "contact", "actuator"):
        root.append(copy.deepcopy(shared.find(tag)))  # pyright: ignore[reportArgumentType]
    asset = ElementTree.SubElement(root, "asset")
    asset.extend(assets.iter("mesh"))
    for material in assets.iter("material"):
        if material.get("name") in ("robot0:MatColl", "robot0:MatViz"):
            asset.append(material)
    tendons = ElementTree.SubElement(root, "tendon")
    tendons.extend(t for t in shared.iter("fixed") if t.get("name", "").removeprefix("robot0:") in COUPLINGS)
    body = ElementTree.SubElement(root, "worldbody")
    body.extend(robot)
    # The original's loader drops the root's position but keeps its rotation: fingers along -y, palm up.
    body[0].set("name", "mount")
    body[0].set("pos", "0 0 0")
    return ElementTree.tostring(root, encoding="unicode").replace("robot0:", "")


def hand_spec(colour: tuple[float, float, float]) -> Any:
    """An `MjSpec` of one hand for attaching, weightless as in the original (`disable_gravity`)."""
    spec = mujoco.MjSpec.from_string(hand_xml())
    for body in spec.bodies:
        body.gravcomp = 1
    for geom in spec.geoms:
        if geom.name.startswith("C_"):
            geom.contype, geom.conaffinity = HAND, 0
        else:
            geom.contype = geom.conaffinity = 0  # also the two markers, boxes of 1 mm, that the asset lets collide
            geom.material, geom.rgba = "", [*colour, 1.0]
    return spec
