"""Conversations as text: a template in Jinja, as transformers applies it."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from clearhead.errors import ClearheadError
from clearhead.tokenizer.base import END_OF_TEXT

Message = Mapping[str, str]
"""A `role` (system, user or assistant) and its `content`."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] | trim + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '### Response:\\n' + message['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('the roles are system, user and assistant') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""
"""The template of models that are fine-tuned here and have none of their own."""


def render_chat(
    template: str, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str:
    """Return a conversation as the text that a model reads.

    Args:
        template: In Jinja; it runs in a sandbox.
        messages: What was said, in order.
        add_generation_prompt: End with what stands before an answer.

    Raises:
        ClearheadError: The template is damaged, or refuses the messages.
    """
    import jinja2

    try:
        return _compiled(template).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            eos_token=END_OF_TEXT,
            bos_token=END_OF_TEXT,
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ClearheadError(f"the chat template refuses the messages: {error}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> "jinja2.Template":  # type: ignore[name-defined]
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template)
