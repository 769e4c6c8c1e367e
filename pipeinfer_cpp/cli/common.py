"""What `chat` and `generate` can be asked for."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeinfer_cpp.cli import completing, parsing
from pipeinfer_cpp.emulation import PRESETS, Cluster
from pipeinfer_cpp.engine.settings import MODES, TECHNIQUES
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.splits import parse_shares
from pipeinfer_cpp.net.messages import WIRES
from pipeinfer_cpp.options import KV_TYPES, Options
from pipeinfer_cpp.sampling import Sampling

DEFAULT_PAIR = "demo"
TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="Another chat template than the model's: a Jinja file, or a name.",
        metavar="FILE|NAME",
        autocompletion=completing.templates,
    ),
]
TemplateVariables = Annotated[
    str | None, typer.Option("--chat-template-kwargs", help="Variables of the template, as JSON.", metavar="JSON")
]
_MODELS, _PIPELINE, _SPECULATION, _SAMPLING = "Models", "Pipeline", "Speculation", "Sampling"


@dataclass(frozen=True)
class PipelineOptions:
    """Which models, divided how, run how."""

    pair: Annotated[
        str | None,
        typer.Option(
            help="A pair of models.toml (default: demo).",
            metavar="NAME",
            autocompletion=completing.pairs,
            rich_help_panel=_MODELS,
        ),
    ] = None
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            "-m",
            help="The target model: a GGUF, or its name on Hugging Face (the default quantisation is Q4_K_M).",
            metavar="FILE|OWNER/REPO:QUANT",
            rich_help_panel=_MODELS,
        ),
    ] = None
    draft: Annotated[
        Path | None,
        typer.Option(
            "--draft",
            "-md",
            help="Its draft model, given in the same way; ngram: none, the text itself guesses what comes next.",
            metavar="FILE|OWNER/REPO:QUANT|ngram",
            rich_help_panel=_MODELS,
        ),
    ] = None
    models: Annotated[
        Path | None, typer.Option(help="A further models.toml.", metavar="FILE", rich_help_panel=_MODELS)
    ] = None
    stages: Annotated[
        str | None,
        typer.Option(
            help="How many stages to start here (default: 2), or the addresses of stages that run already.",
            metavar="N|ADDRESS,...",
            rich_help_panel=_PIPELINE,
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Shares of the layers, one for each stage: 0.3,0.3,0.4.", metavar="SHARES", rich_help_panel=_PIPELINE
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(help="The layers of each stage: 0-9,10-19.", metavar="RANGES", rich_help_panel=_PIPELINE),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "-t", help="Threads of each process (default: the cores, shared out).",
            rich_help_panel=_PIPELINE,
        ),
    ] = None
    ctx_size: Annotated[
        int | None,
        typer.Option(
            "--ctx-size",
            "-c",
            help="Context size in tokens; 0: what the model was trained for (default: as much of that "
            "as fits comfortably into memory).",
            rich_help_panel=_PIPELINE,
        ),
    ] = None
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots",
            "-np",
            help="Conversations at a time, each with a context of its own (serve; default: 4).",
            rich_help_panel=_PIPELINE,
        ),
    ] = None
    kv_type: Annotated[
        str,
        typer.Option(
            help=f"Type of the KV cache: {', '.join(KV_TYPES)}.",
            metavar="TYPE",
            autocompletion=completing.among(KV_TYPES),
            rich_help_panel=_PIPELINE,
        ),
    ] = "auto"
    flash_attn: Annotated[
        bool, typer.Option("--flash-attn/--no-flash-attn", help="Flash attention.", rich_help_panel=_PIPELINE)
    ] = True
    gpu_layers: Annotated[
        int,
        typer.Option(
            "--gpu-layers", "-ngl", help="Layers of each slice on the GPU (-1: all).", rich_help_panel=_PIPELINE
        ),
    ] = 0
    wire: Annotated[
        str,
        typer.Option(
            help="How hidden states travel, for all links or one each: f32, f16, bf16, q8, q4.",
            metavar="CODEC,...",
            autocompletion=completing.among(WIRES, several=True),
            rich_help_panel=_PIPELINE,
        ),
    ] = "f32"
    patience: Annotated[
        float,
        typer.Option(
            help="How many seconds a stage on another machine may be silent before it counts as lost.",
            rich_help_panel=_PIPELINE,
        ),
    ] = 10.0
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact",
            help="Keep batches so small that speculation never changes the text "
            "(default: on, if everything runs on CPUs with one branch).",
            rich_help_panel=_PIPELINE,
        ),
    ] = None
    mode: Annotated[
        str | None,
        typer.Option(
            help="async (PipeInfer), sync (draft, verify, repeat) or off (default: async with a draft, else off).",
            metavar="MODE",
            autocompletion=completing.among(MODES),
            rich_help_panel=_SPECULATION,
        ),
    ] = None
    draft_max: Annotated[
        int | None, typer.Option(help="Draft length of --mode sync.", rich_help_panel=_SPECULATION)
    ] = None
    branches: Annotated[
        int | None, typer.Option(help="Paths of the token tree (default: 1).", rich_help_panel=_SPECULATION)
    ] = None
    cutoff: Annotated[
        float | None,
        typer.Option(help="Confidence below which drafting pauses, 0 to 1.", rich_help_panel=_SPECULATION),
    ] = None
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            help="Switch a technique off: continuous, multibuffer, cancel, draft-ahead (repeatable).",
            metavar="TECHNIQUE",
            autocompletion=completing.among(TECHNIQUES, several=True),
            rich_help_panel=_SPECULATION,
        ),
    ] = None
    emulate: Annotated[
        str | None,
        typer.Option(
            help="Slow down to the speed of a cluster: fast, gigabit, constrained, heterogeneous, wifi, powerline, "
            "10mbit, or a cluster.toml.",
            metavar="NAME|FILE",
            autocompletion=completing.among(PRESETS),
            rich_help_panel=_PIPELINE,
        ),
    ] = None
    stretch: Annotated[str | None, typer.Option(hidden=True, metavar="MS[:MS],...")] = None
    draft_stretch: Annotated[str | None, typer.Option(hidden=True, metavar="MS")] = None

    def options(self, *, trace: bool = False) -> Options:
        """For `Pipeline`. Raises UserError for texts that are no such values."""
        split = parse_shares(self.split) if self.split is not None else None
        draft_stretch = parsing.stretch(self.draft_stretch) if self.draft_stretch else None
        if isinstance(draft_stretch, list):
            raise UserError("--draft-stretch takes one value: there is one draft worker.")
        cluster = self._cluster(split)
        options = Options(
            pair=self.pair if self.pair or self.target else DEFAULT_PAIR,
            target=self.target,
            draft=self.draft,
            models=self.models,
            stages=cluster.n_stages if cluster is not None else self._stages(split),
            split=split,
            layers=self.layers,
            threads=self.threads,
            mode=self.mode,
            ctx=self.ctx_size,
            slots=1 if self.slots is None else self.slots,
            kv_type=self.kv_type,
            flash_attn=self.flash_attn,
            gpu_layers=self.gpu_layers,
            wire=self.wire.split(",") if "," in self.wire else self.wire,
            patience=self.patience,
            exact=self.exact,
            branches=self.branches,
            cutoff=self.cutoff,
            draft_max=self.draft_max,
            ablate=parsing.names(self.ablate or ()),
            stretch=parsing.stretch(self.stretch) if self.stretch else None,
            draft_stretch=draft_stretch,
            emulate=cluster,
            trace=trace,
        )
        options.check()
        return options

    def _cluster(self, split: list[float] | None) -> Cluster | None:
        """Without --stages there are as many as the cluster has nodes."""
        if self.emulate is None:
            return None
        from pipeinfer_cpp.emulation import load_cluster

        said = self.stages is not None or split is not None or self.layers is not None
        n = self._stages(split) if said else None
        if isinstance(n, list):
            raise UserError("A cluster is emulated on one machine: --emulate takes a number of --stages.")
        return load_cluster(self.emulate, n)

    def _stages(self, split: list[float] | None) -> int | list[str]:
        """Without --stages there are as many as --split or --layers name."""
        if self.stages is not None:
            return parsing.stages(self.stages)
        if split is not None:
            return len(split)
        if self.layers is not None:
            return len(self.layers.split(","))
        return 2


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn, named as in llama.cpp."""

    temp: Annotated[float, typer.Option(help="Temperature; 0 is greedy.", rich_help_panel=_SAMPLING)] = 0.8
    top_k: Annotated[int, typer.Option(help="0 or below: off.", rich_help_panel=_SAMPLING)] = 40
    top_p: Annotated[float, typer.Option(help="1: off.", rich_help_panel=_SAMPLING)] = 0.95
    min_p: Annotated[float, typer.Option(help="0: off.", rich_help_panel=_SAMPLING)] = 0.05
    typical: Annotated[float, typer.Option("--typical", "--typical-p", help="1: off.", rich_help_panel=_SAMPLING)] = 1.0
    repeat_penalty: Annotated[float, typer.Option(help="1: off.", rich_help_panel=_SAMPLING)] = 1.0
    repeat_last_n: Annotated[
        int, typer.Option(help="How many tokens the penalties look back; -1: all.", rich_help_panel=_SAMPLING)
    ] = 64
    presence_penalty: Annotated[float, typer.Option(help="0: off.", rich_help_panel=_SAMPLING)] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="0: off.", rich_help_panel=_SAMPLING)] = 0.0
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            help="Makes a token likelier or less likely (repeatable).",
            metavar="ID(+/-)AMOUNT",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    grammar: Annotated[str | None, typer.Option(help="A GBNF grammar.", rich_help_panel=_SAMPLING)] = None
    grammar_file: Annotated[
        Path | None, typer.Option(help="The grammar's file.", metavar="FILE", rich_help_panel=_SAMPLING)
    ] = None
    json_schema: Annotated[
        str | None, typer.Option(help="A JSON schema that the text has to fit.", rich_help_panel=_SAMPLING)
    ] = None
    json_schema_file: Annotated[
        Path | None, typer.Option(help="The schema's file.", metavar="FILE", rich_help_panel=_SAMPLING)
    ] = None
    regex: Annotated[
        str | None,
        typer.Option(help="A regular expression that the whole text has to match.", rich_help_panel=_SAMPLING),
    ] = None
    lark: Annotated[
        str | None, typer.Option(help="A Lark grammar, as llguidance reads it.", rich_help_panel=_SAMPLING)
    ] = None
    lark_file: Annotated[
        Path | None, typer.Option(help="That grammar's file.", metavar="FILE", rich_help_panel=_SAMPLING)
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            help="One seed gives one text, in every mode and split (-1, the default: a random one).",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help=r"Text at which the generation ends (repeatable; \n is a line break).",
            metavar="TEXT",
            rich_help_panel=_SAMPLING,
        ),
    ] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Those of `stop`, as they are meant."""
        return tuple(map(parsing.stop_text, self.stop or ()))

    @property
    def seed_is_random(self) -> bool:
        return self.seed is None or self.seed == -1

    def sampling(self) -> Sampling:
        """Checked; with a random seed where none was given."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in Sampling.__struct_fields__
        }
        plain.update(
            typical_p=self.typical,
            logit_bias=parsing.logit_bias(self.logit_bias or ()),
            grammar=parsing.text_or_file(self.grammar, self.grammar_file, "--grammar"),
            json_schema=parsing.text_or_file(self.json_schema, self.json_schema_file, "--json-schema"),
            lark=parsing.text_or_file(self.lark, self.lark_file, "--lark"),
            seed=secrets.randbits(31) if self.seed_is_random else self.seed,
        )
        if not -(2**63) <= plain["seed"] < 2**64:
            raise UserError("--seed must be a number of at most 64 bits.")
        sampling = Sampling(**plain)
        sampling.check()
        return sampling
