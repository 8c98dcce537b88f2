"""Robot video: whole frames are judged, by how far pixels are off and how alike structures look."""

from data.world import VideoTask

TASK = VideoTask(reward="mae+0.5*ssim")
