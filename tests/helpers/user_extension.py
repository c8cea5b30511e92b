"""A trainer's own `worker_extension_cls`, and one whose method has a name of ours."""


class Theirs:
    def weights_seen(self) -> int:
        return sum(weight.numel() for weight in self.model_runner.model.parameters())  # type: ignore[attr-defined]


class Clashing:
    def lynx_policy(self) -> str:
        return "theirs"
