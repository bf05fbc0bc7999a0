"""A batch without a server: python batch.py [MODEL]"""

import sys

from octavo import LLM, SamplingParams


def main() -> None:
    prompts = [f"A fact about the number {number}:" for number in range(8)]
    with LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2", max_model_len=512) as llm:
        for result in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=24, stop=("\n",))):
            print(f"{result.prompt}{result.outputs[0].text}")
        conversation = [{"role": "user", "content": "Name three rivers."}]
        (reply,) = llm.chat(conversation, SamplingParams(temperature=0.0, max_tokens=48))
        print(f"\n{reply.outputs[0].text}")


if __name__ == "__main__":
    main()
