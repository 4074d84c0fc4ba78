"""Read the text that trainers send, which a chat template has rendered already, back into items."""

from collections.abc import Sequence
from functools import partial

from assay_service.api.compat.wire import WireContext
from assay_service.api.sources import ItemSource, UnreadItem
from assay_service.errors import ContentError, ServingError
from assay_service.scoring.blend import Blend
from assay_service.scoring.item import Item, Message
from assay_service.scoring.token_reader import TokenReader
from assay_service.scoring.transcript import Transcript


def read_texts(context: WireContext, blend: Blend, texts: Sequence[str | ContentError]) -> list[ItemSource]:
    """Return the conversation of each rendered text; its last turn is the completion.

    Args:
        context: the wire, whose settings may name the policy's template.
        blend: blend that scores; without a policy, its signals' own template reads the texts.
        texts: rendered conversations, with special tokens, perhaps with leading pads; an error in place of one is
            returned as it is.

    Raises:
        ServingError: no policy is declared, and the signals of the blend have different templates or tokenizers.
    """
    transcript = _find_transcript(context, blend)
    return [
        text if isinstance(text, ContentError) else UnreadItem(len(text), partial(transcript.read, text))
        for text in texts
    ]


def read_pairs(context: WireContext, blend: Blend, pairs: Sequence[tuple[str, str] | ContentError]) -> list[ItemSource]:
    """Return the conversation of each rendered prompt, which ends with the generation prompt, and its completion.

    An error in place of a pair is returned as it is.

    Raises:
        ServingError: as for `read_texts`.
    """
    transcript = _find_transcript(context, blend)
    return [
        pair
        if isinstance(pair, ContentError)
        else UnreadItem(sum(map(len, pair)), partial(transcript.read_pair, *pair))
        for pair in pairs
    ]


def read_ids(context: WireContext, blend: Blend, lists: Sequence[Sequence[int]]) -> list[ItemSource]:
    """Return the conversation of each list of token ids, which the tokenizer of the blend's signals decodes.

    Raises:
        ServingError: as for `read_texts`, or the signals of the blend have different tokenizers.
    """
    reader, transcript = _find_reader(context, blend), _find_transcript(context, blend)
    return [UnreadItem(len(ids), partial(_read_ids, transcript, reader, ids)) for ids in lists]


def read_id_pairs(
    context: WireContext, blend: Blend, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[ItemSource]:
    """Return the conversation of the ids of each rendered prompt, and of its completion; see `read_pairs`.

    Raises:
        ServingError: as for `read_ids`.
    """
    reader, transcript = _find_reader(context, blend), _find_transcript(context, blend)
    return [UnreadItem(sum(map(len, pair)), partial(_read_id_pair, transcript, reader, *pair)) for pair in pairs]


def read_completion(context: WireContext, blend: Blend, prompt: Sequence[Message], completion: str) -> ItemSource:
    """Return the conversation of a prompt of messages and the completion that the policy wrote, with special tokens.

    Raises:
        ServingError: as for `read_texts`.
    """
    transcript = _find_transcript(context, blend)
    return UnreadItem(len(completion), partial(transcript.read_completion, prompt, completion))


def _find_transcript(context: WireContext, blend: Blend) -> Transcript:
    if context.policy is not None:
        return context.policy
    renderers = [context.registry.signals[name].renderer for name in blend.weights]
    # Equal rules read a text in the same way, so that two signals on one base need no policy.
    transcripts = list({renderer.text_rule: renderer.transcript for renderer in renderers}.values())
    if len(transcripts) > 1:
        raise ServingError(
            "the signals of this blend have different templates or tokenizers, so the text cannot be read by their "
            f"own; declare the policy's tokenizer and template: compat.wires.{context.name}.policy: DIR",
            code="invalid_request",
        )
    return transcripts.pop()


def _find_reader(context: WireContext, blend: Blend) -> TokenReader:
    signals = [context.registry.signals[name] for name in blend.weights]
    readers = {signal.renderer.tokenizer_sha256: signal.token_reader for signal in signals}
    if len(readers) > 1:
        raise ServingError(
            "the signals of this blend have different tokenizers, so token ids have no single meaning; send text",
            code="invalid_request",
        )
    (reader,) = readers.values()
    return reader


def _read_ids(transcript: Transcript, reader: TokenReader, ids: Sequence[int]) -> Item:
    return transcript.read(reader.decode(ids))


def _read_id_pair(
    transcript: Transcript, reader: TokenReader, prompt: Sequence[int], completion: Sequence[int]
) -> Item:
    # Decoded together, since some decoders drop a space at the start.
    return transcript.read_pair(*reader.decode_pair(prompt, completion))
