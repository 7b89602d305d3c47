"What the operator can set: environment (AGRI_CAE_*), `.env` or YAML, like all settings."
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from agri_cae.config import ServeConfig, Settings
from agri_cae.modelfiles.card import shipped
from agri_cae.modelfiles.names import model_names


class ApiSettings(Settings):
    "Settings of the service. A part of `serve` is set like AGRI_CAE_SERVE__MODEL=base."
    model_config = SettingsConfigDict(env_nested_delimiter="__")
    serve: ServeConfig = Field(ServeConfig(strength="auto"), description=
        "the model that answers when none is asked for, and how models run")
    models: tuple[str, ...] = Field((), description=
        'what may be asked for, as JSON: ["fast", "mine/potato.onnx"]; empty: the default model and all shipped ones')
    upload_bytes: int = Field(32 * 2**20, gt=0, description="largest body of a request")
    upload_pixels: int = Field(50_000_000, gt=0, description=
        "largest picture; its header is read before it is decoded")
    queue_requests: int = Field(64, gt=0, description=
        "requests that are worked on or wait; further ones are refused with 503")
    queue_pixels: int = Field(100_000_000, gt=0, description=
        "pixels of the pictures that are worked on or wait; one picture alone is always let in")
    at_once: int = Field(0, ge=0, description=
        "pictures that are read, denoised and written at the same time; 0: two more than there are cores")
    deadline: float = Field(60, gt=0, description="seconds after which a request is answered with 504")
    grace: float = Field(0, ge=0, description=
        "seconds that requests get to end after SIGTERM; 0: the deadline, so that all that was accepted is answered")
    keys: str = Field("", description=
        "API keys that are let in: NAME:SHA256, or NAME:SHA256:revoked, separated by commas; none here and no file: "
        "everybody is let in")
    keys_file: Path | None = Field(None, description=
        "a file of such entries, one a line; read again whenever it changes")
    metrics_key: str = Field("", description=
        "an entry NAME:SHA256 whose key may read /metrics, and does nothing else; empty: all keys may")
    rate: float = Field(0, ge=0, description=
        "requests a minute that each key may make (without keys, each address), of all processes together; 0: no limit")
    rates_file: Path | None = Field(None, description=
        "where processes count together; by default a file that `agri-cae serve` makes for its processes")
    monitor: bool = Field(True, description=
        "keep the numbers of each prediction, never the picture, examine them each minute, and show them at /monitor; "
        "how: AGRI_CAE_MONITOR_*")
    cors: tuple[str, ...] = Field((), description=
        'web sites whose pages may call the service, as JSON: ["https://farm.example"]')

    @property
    def seconds_to_end(self)->float: # after SIGTERM
        "The grace, or the deadline."
        return self.grace or self.deadline

    @property
    def named(self)->dict: # name in requests -> what `Denoiser.load` takes; the default comes first
        "The models that are served."
        models = [*dict.fromkeys((self.serve.model, *(self.models or shipped())))]
        return dict(zip(model_names(models), models, strict=True))
