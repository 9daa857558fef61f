"""The names of the samplers, Easel's own and those of two dialects. Which of them a
model has is in its model.toml, how they work in app/runtime."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplerNames:
    """The name in AUTOMATIC1111's interface and the class in diffusers."""

    title: str
    diffusers: str


SAMPLERS = {
    "euler": SamplerNames(title="Euler", diffusers="EulerDiscreteScheduler"),
    "euler_ancestral": SamplerNames(title="Euler a", diffusers="EulerAncestralDiscreteScheduler"),
    "ddim": SamplerNames(title="DDIM", diffusers="DDIMScheduler"),
    "pndm": SamplerNames(title="PLMS", diffusers="PNDMScheduler"),
    "lcm": SamplerNames(title="LCM", diffusers="LCMScheduler"),
    "flow_match_euler": SamplerNames(title="Euler", diffusers="FlowMatchEulerDiscreteScheduler"),
}


def title_of(sampler: str) -> str:
    """AUTOMATIC1111's name of a sampler; the name itself if it is not in the table."""
    return SAMPLERS[sampler].title if sampler in SAMPLERS else sampler


def from_title(title: str) -> str:
    """The sampler with this AUTOMATIC1111 name, upper or lower case; the text itself if there is
    none. Two samplers are called Euler there: the first one is taken."""
    lower = title.lower()
    return next((name for name, names in SAMPLERS.items() if names.title.lower() == lower), title)


def from_diffusers(class_name: str) -> str:
    """The sampler with this diffusers class; the text itself if there is none."""
    found = (name for name, names in SAMPLERS.items() if names.diffusers == class_name)
    return next(found, class_name)
