"""
Video episodes on disk: .npz files with image uint8 [T, H, W, 3] and action float32 [T, A], where action[t] leads from image[t] to image[t + 1].

It is the layout that the official converter writes. Files may come from anywhere: nothing is unpickled, and what an array declares to be is
checked before any of it is read.
"""
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from common import BadInput

LARGEST = 2 ** 31  # bytes that one array of an episode may take


def declared(file, name):
    """(shape, dtype) that the header of one array in an open .npz declares; its data are not read."""
    with file.open(name + ".npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def read_episode(path):
    """
    (image uint8 [T, H, W, 3], action float32 [T, A]) of one .npz file.

    Raises BadInput naming the file for one that is torn or foreign, lacks an array, or holds one of wrong type, rank or length, of more than
    2 GiB, with objects in it (they would have to be unpickled), or with actions that are not finite.
    """
    remedy = "convert the episode again, or leave the file out"
    try:
        with zipfile.ZipFile(path) as file:
            shapes = {name: declared(file, name) for name in ("image", "action")}
            for name, (shape, dtype) in shapes.items():
                if dtype.hasobject:
                    raise BadInput(f"{path}: {name} holds Python objects, which are never unpickled here; {remedy}")
                size = dtype.itemsize
                for n in shape:  # Python's whole numbers cannot overflow
                    size *= n
                if size > LARGEST or file.getinfo(name + ".npy").file_size > LARGEST + 2 ** 16:
                    raise BadInput(f"{path}: {name} declares {size:,} bytes, more than the {LARGEST:,} an episode may have; cut it into shorter ones")
        (shape, dtype), (action_shape, action_dtype) = shapes["image"], shapes["action"]
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise BadInput(f"{path}: image is {dtype} {list(shape)}, expected uint8 [frames, height, width, 3]; {remedy}")
        if action_dtype.kind not in "fiu" or len(action_shape) != 2 or action_shape[0] != shape[0] or action_shape[1] == 0:
            raise BadInput(f"{path}: action is {action_dtype} {list(action_shape)}, expected float32 [{shape[0]} frames, numbers]; {remedy}")
        with np.load(path, allow_pickle=False) as arrays:
            image, action = arrays["image"], arrays["action"].astype(np.float32)
    except BadInput:
        raise
    except KeyError as error:
        raise BadInput(f"{path}: there is no array {str(error).split(chr(39))[1].removesuffix('.npy')!r}; an episode has image and action") from None
    except Exception as error:  # OSError, ValueError, BadZipFile, zlib.error and what else a hostile file can provoke
        raise BadInput(f"{path} is not a complete .npz episode ({type(error).__name__}); {remedy}") from None
    if not np.isfinite(action).all():
        t = int(np.argwhere(~np.isfinite(action))[0][0])
        raise BadInput(f"{path}: action {t} is not finite; {remedy}")
    return image, action


def read_episodes(folder, minimum_frames=2, make="python data/robot/prepare.py"):
    """
    All episodes (.npz) of a folder in the order of their names, a list of (image, action).

    Raises BadInput if there are none, if one is shorter than minimum_frames, or if resolutions or action sizes are mixed.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise BadInput(f"there are no .npz episodes in {folder}; make them with {make}")
    episodes = []
    for path in paths:
        image, action = read_episode(path)
        if len(image) < minimum_frames:
            raise BadInput(f"{path} has {len(image)} frames, but a segment needs {minimum_frames}; leave the file out, or shorten the world's "
                           f"context_frames or horizon in meta.json")
        episodes.append((image, action))
        first = episodes[0]
        if image.shape[1:] != first[0].shape[1:]:
            raise BadInput(f"{path} has frames of {image.shape[1]}x{image.shape[2]}, {paths[0].name} of {first[0].shape[1]}x{first[0].shape[2]}; "
                           f"resize them to one resolution")
        if action.shape[1] != first[1].shape[1]:
            raise BadInput(f"{path} has {action.shape[1]} numbers an action, {paths[0].name} has {first[1].shape[1]}; put them into different folders")
    return episodes


def read_world_episodes(name, split, minimum_frames=2):
    """The episodes of one split of a video world, given by folder or by name under data/; its meta.json may say that they lie elsewhere."""
    folder = Path(name) if (Path(name) / "meta.json").is_file() else Path(__file__).parent / name
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except OSError:
        raise BadInput(f"there is no video world in {folder} (no meta.json); make one with python data/robot/prepare.py") from None
    except ValueError:
        raise BadInput(f"{folder / 'meta.json'} is damaged; make the world again with python data/robot/prepare.py") from None
    if meta.get("domain") != "video":
        raise BadInput(f"{folder} is no video world but one of {meta.get('domain')!r}; frames have tokenizers, texts have none")
    return read_episodes(folder / meta.get("episodes", ".") / split, minimum_frames)


def write_arrays(path, **arrays):
    """Writes an .npz under a temporary name and renames it: the file is whole or absent."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(f"could not write {path}: {error.strerror}; nothing was changed there") from None


def write_episode(path, image, action, **extra):
    """Writes one episode: image uint8 [T, H, W, 3], action float32 [T, A], and whatever else should be kept beside them."""
    write_arrays(path, image=np.asarray(image, dtype=np.uint8), action=np.asarray(action, dtype=np.float32), **extra)
