"""load_world(name): the one way from a name on the command line to a world."""

from common import BadInput
from data.world import TextTask, VideoTask, load_task, read_meta

TASKS = {"text": TextTask, "video": VideoTask}


def load_world(name, device="cpu", task="", lpips_weights=""):
    """
    The world in the folder `name`, or called so.

    task: the user's own task.py, where the domain is none of ours. lpips_weights: a folder with the
    public VGG16 and LPIPS weights, for the metric lpips of video worlds. Raises BadInput if there
    is no such world, naming the command that makes it.
    """
    folder, meta, make = read_meta(name)
    if meta["form"] == "video":
        from data.video import VideoWorld

        return VideoWorld(
            folder,
            meta,
            load_task(meta["domain"], task, TASKS[meta["form"]]),
            make,
            device,
            lpips_weights,
        )
    if lpips_weights:
        raise BadInput(f"--lpips_weights is for video worlds, and {name} is a text world")
    from data.text import TextWorld

    return TextWorld(
        folder, meta, load_task(meta["domain"], task, TASKS[meta["form"]]), make, device
    )
