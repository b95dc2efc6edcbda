"""For all tests: no example of hypothesis fails because a busy machine was slow."""

from hypothesis import settings

settings.register_profile("infercam", deadline=None, print_blob=True)
settings.load_profile("infercam")
