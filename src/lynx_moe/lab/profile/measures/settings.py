"""What decides a profile, and the model and data that it names."""

from dataclasses import dataclass

from lynx_moe.lab.fidelity import measure as fidelity


@dataclass(frozen=True, kw_only=True)
class Settings:
    """data, num_sequences, prefix, steps, seed and dtype are those of `fidelity.Settings`.

    batch_size   sequences that decode together, 2 or more.
    num_experts  experts of each layer that are denied one by one, those with most use first.
    rounds       interleaved rounds of the timing; 0: nothing is timed.
    tolerance    nats of KL per token that a suggested policy may cost, by the upper end of its interval.
    """

    model: str
    data: str = "testbed"
    batch_size: int = 16
    num_sequences: int = 112
    prefix: int = 32
    steps: int = 32
    num_experts: int = 16
    rounds: int = 9
    tolerance: float = 0.01
    seed: int = 0
    dtype: str = "auto"
    trust_remote_code: bool | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size}: a request alone shares with nobody; use 2 or more")
        self.reading()
        if self.num_experts < 1:
            raise ValueError(f"num_experts={self.num_experts}: deny at least 1 expert of each layer")
        if self.rounds < 0 or self.rounds in (1, 2):
            raise ValueError(f"rounds={self.rounds}: a spread needs 3 rounds or more; 0 leaves the timing out")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance} must be above 0, such as 0.01 nats a token")

    def reading(self) -> fidelity.Settings:
        """How the model and the documents are read. Raises ValueError for sizes that do not fit together."""
        return fidelity.Settings(
            model=self.model,
            data=self.data,
            batch_sizes=(self.batch_size,),
            mixes=("mixed",),
            num_sequences=self.num_sequences,
            prefix=self.prefix,
            steps=self.steps,
            seed=self.seed,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )
