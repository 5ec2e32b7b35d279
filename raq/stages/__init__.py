"""What each kind of stage does: folders and values in, files in its work folder and plain results out.

Plain torch, never ray, so that a whole experiment can be run, tested and profiled without a cluster. torch is imported
inside the functions: the driver reads these modules' types without paying for it.
"""
