"""What full-size models take of a device, and a switch between them; what cannot run here is left out by name."""

from collections.abc import Iterator

from benchmarks.rows import Row, left_out

ON_A_GPU = (
    "sdxl 1024x1024 in little memory beside plain diffusers: peak and time",
    "sdxl 1024x1024 under every offload strategy and precision: peak and time",
    "4 sd15 checkpoints on cuda, room for 1: a switch",
)
ON_THE_CPU = "4 sd15 checkpoints on cpu, room for 1 and for 4: a switch"


def on_a_gpu(rounds: int) -> Iterator[Row]:
    """SDXL in little memory, SDXL in every way, and switches between checkpoints."""
    import torch

    if not torch.cuda.is_available():
        yield from (left_out(what, "no NVIDIA GPU") for what in ON_A_GPU)
        return
    from benchmarks import full_size, strategies, zoo

    needed = {"sdxl": full_size.full_size_bytes("sdxl"), "sd15": zoo.COPIES * full_size.full_size_bytes("sd15")}
    measures = (("sdxl", strategies.low_memory), ("sdxl", strategies.every_way), ("sd15", zoo.switches))
    for what, (family, measure) in zip(ON_A_GPU, measures, strict=True):
        lack = full_size.disk_lacks(needed[family])
        if lack:
            yield left_out(what, lack)
        else:
            yield from measure(rounds)


def on_the_cpu(rounds: int) -> Iterator[Row]:
    """Switches between checkpoints where RAM is all the memory there is."""
    from app.models.machine import cpu_has_bfloat16, ram_free
    from benchmarks import full_size, zoo

    one = full_size.full_size_bytes("sd15")
    # All of them stand at once beside the plain side's, in the format that a CPU computes in.
    needed = (zoo.COPIES + 1) * one * (1 if cpu_has_bfloat16() else 2)
    lack = full_size.disk_lacks(zoo.COPIES * one)
    if not lack and ram_free() < needed:
        lack = f"it takes {needed / 1e9:.0f} GB of RAM; {ram_free() / 1e9:.0f} are free"
    if lack:
        yield left_out(ON_THE_CPU, lack)
    else:
        yield from zoo.switches(rounds, (1, zoo.COPIES), device="cpu", precision="auto")
