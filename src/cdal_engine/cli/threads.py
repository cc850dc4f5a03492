"""How many threads a command computes with."""

__all__ = ["use_available_processors"]


def use_available_processors() -> None:
    """Keep torch to a container's share of the processors, which it does not know itself.

    With more threads than that, they wait for each other most of the time.
    """
    import torch
    from dask.system import CPU_COUNT

    torch.set_num_threads(min(torch.get_num_threads(), CPU_COUNT))
