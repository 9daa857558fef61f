"""What the samplers are called, here and in the dialects. Which of them a model has is a fact of
the model (model.toml)."""

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
    """AUTOMATIC1111's name; a sampler without one keeps its own."""
    return SAMPLERS[sampler].title if sampler in SAMPLERS else sampler


def from_title(title: str) -> str:
    """The sampler of a title in any case. Two samplers are called Euler: the first one is meant."""
    wanted = title.lower()
    return next((name for name, names in SAMPLERS.items() if names.title.lower() == wanted), title)


def from_diffusers(class_name: str) -> str:
    """The sampler of a diffusers class; another name stays what it is."""
    found = (name for name, names in SAMPLERS.items() if names.diffusers == class_name)
    return next(found, class_name)
