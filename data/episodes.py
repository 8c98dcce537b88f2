"""
Video episodes on disk: .npz files with image uint8 [T, H, W, 3] and action float32 [T, A], where
action[t] leads from image[t] to image[t + 1], and optionally state float32 [T, S], what is known of
each frame besides its pixels.

It is the layout that the official converter writes. Files may come from anywhere: nothing is
unpickled, and what an array declares to be is checked before any of it is read.
"""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import BadInput
from data.world import read_meta


class Episode(NamedTuple):
    image: np.ndarray  # uint8 [T, H, W, 3]
    action: np.ndarray  # float32 [T, A]
    state: np.ndarray | None = None  # float32 [T, S]


LARGEST = 2**31  # bytes that one array of an episode may take


def declared(file, name):
    """(shape, dtype) that the header of one array in an open .npz declares; no data are read."""
    with file.open(name + ".npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        shape, _, dtype = read(member)
    return shape, dtype


def check_declared(path, file, name, remedy):
    """(shape, dtype) of an array. Raises BadInput for objects, or more than LARGEST bytes."""
    shape, dtype = declared(file, name)
    if dtype.hasobject:
        raise BadInput(
            f"{path}: {name} holds Python objects, which are never unpickled here; {remedy}"
        )
    size = dtype.itemsize
    for n in shape:  # Python's whole numbers cannot overflow
        size *= n
    if size > LARGEST or file.getinfo(name + ".npy").file_size > LARGEST + 2**16:
        raise BadInput(
            f"{path}: {name} declares {size:,} bytes, more than the {LARGEST:,} an episode may "
            f"have; cut it into shorter ones"
        )
    return shape, dtype


def read_episode(path):
    """
    The Episode of one .npz file.

    Raises BadInput naming the file for one that is torn or foreign, lacks an array, or holds one of
    wrong type, rank or length, of more than 2 GiB, with objects in it (they would have to be
    unpickled), or with numbers that are not finite.
    """
    remedy = "convert the episode again, or leave the file out"
    state = None
    try:
        with zipfile.ZipFile(path) as file:
            shape, dtype = check_declared(path, file, "image", remedy)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
                raise BadInput(
                    f"{path}: image is {dtype} {list(shape)}, expected uint8 "
                    f"[frames, height, width, 3]; {remedy}"
                )
            names = [name for name in ("action", "state") if name + ".npy" in file.namelist()]
            for name in ["action", *names[1:]]:
                own_shape, own_dtype = check_declared(path, file, name, remedy)
                numbers = own_dtype.kind in "fiu" and len(own_shape) == 2 and own_shape[1] > 0
                if not numbers or own_shape[0] != shape[0]:
                    raise BadInput(
                        f"{path}: {name} is {own_dtype} {list(own_shape)}, expected float32 "
                        f"[{shape[0]} frames, numbers]; {remedy}"
                    )
        with np.load(path, allow_pickle=False) as arrays:
            image = arrays["image"]
            action = arrays["action"].astype(np.float32)
            if "state" in names:
                state = arrays["state"].astype(np.float32)
    except BadInput:
        raise
    except KeyError as error:
        name = str(error).split(chr(39))[1].removesuffix(".npy")
        raise BadInput(
            f"{path}: there is no array {name!r}; an episode has image and action"
        ) from None
    except Exception as error:  # OSError, ValueError, BadZipFile and what a hostile file provokes
        kind = type(error).__name__
        raise BadInput(f"{path} is not a complete .npz episode ({kind}); {remedy}") from None
    for name, array in (("action", action), ("state", state)):
        if array is not None and not np.isfinite(array).all():
            t = int(np.argwhere(~np.isfinite(array))[0][0])
            raise BadInput(f"{path}: {name} {t} is not finite; {remedy}")
    return Episode(image, action, state)


def read_episodes(folder, minimum_frames=2, remedy="name another folder"):
    """
    All Episodes (.npz) of a folder in the order of their names; hidden files are passed over.

    Raises BadInput if there are none, if one is shorter than minimum_frames, or if resolutions or
    the sizes of actions or states are mixed.
    """
    paths = sorted(path for path in Path(folder).glob("*.npz") if path.name[0] != ".")
    if not paths:
        raise BadInput(f"there are no .npz episodes in {folder}; {remedy}")
    episodes = []
    for path in paths:
        episode = read_episode(path)
        if len(episode.image) < minimum_frames:
            raise BadInput(
                f"{path} has {len(episode.image)} frames, but a segment needs {minimum_frames}; "
                f"leave the file out, or ask for fewer frames with --context or --horizon"
            )
        episodes.append(episode)
        first = episodes[0]
        if episode.image.shape[1:] != first.image.shape[1:]:
            sizes = ["x".join(map(str, e.image.shape[1:3])) for e in (episode, first)]
            raise BadInput(
                f"{path} has frames of {sizes[0]}, {paths[0].name} of {sizes[1]}; resize them to "
                f"one resolution"
            )
        if episode.action.shape[1] != first.action.shape[1]:
            raise BadInput(
                f"{path} has {episode.action.shape[1]} numbers an action, {paths[0].name} has "
                f"{first.action.shape[1]}; put them into different folders"
            )
        widths = [None if e.state is None else e.state.shape[1] for e in (episode, first)]
        if widths[0] != widths[1]:
            raise BadInput(
                f"{path} and {paths[0].name} have states of different sizes ({widths[0]}, "
                f"{widths[1]}; None: there is none); make them alike"
            )
    return episodes


def read_world_episodes(name, split, minimum_frames=2):
    """
    The Episodes of one split of a video world, given by folder or name; its meta.json may say that
    they lie elsewhere.
    """
    folder, meta, make = read_meta(name)
    if meta["form"] != "video":
        raise BadInput(f"{folder} is a text world; frames have tokenizers, texts have none")
    place = folder / meta.get("episodes", ".") / split
    return read_episodes(place, minimum_frames, f"make them with {make}")


def write_arrays(path, **arrays):
    """
    Writes an .npz under a temporary name and renames it: the file is whole or absent. Raises
    BadInput if the disk does not take it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BadInput(
            f"could not write {path}: {error.strerror}; nothing was changed there"
        ) from None


def write_episode(path, image, action, **extra):
    """
    Writes one episode: image uint8 [T, H, W, 3], action float32 [T, A], and whatever else should be
    kept beside them.
    """
    image = np.asarray(image, dtype=np.uint8)
    action = np.asarray(action, dtype=np.float32)
    write_arrays(path, image=image, action=action, **extra)
