"""Rank documents by the `JinaRerank` of LangChain and of LlamaIndex."""

import json
import sys
from typing import Any

import langchain_community.document_compressors.jina_rerank as langchain
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank

JOB = json.load(sys.stdin)
QUERY = JOB["prompt"][0]["content"]
BASE = f"{JOB['url']}/compat/jina/v1"
langchain.JINA_API_URL = f"{BASE}/rerank"  # its one way to another address


def by_langchain(texts: list[str]) -> list[Any]:
    compressor = langchain.JinaRerank(jina_api_key="key", model="mix", top_n=len(texts))
    found = compressor.compress_documents([Document(page_content=text) for text in texts], QUERY)
    return [(document.page_content, document.metadata["relevance_score"]) for document in found]


def by_llama_index(texts: list[str]) -> list[Any]:
    reranker = JinaRerank(top_n=len(texts), model="mix", base_url=BASE, api_key="key")
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    return [(row.node.text, row.score) for row in reranker.postprocess_nodes(nodes, QueryBundle(QUERY))]


def fail(rank: Any) -> str:
    try:
        return repr(rank(["hello", JOB["refused"]]))
    except RuntimeError as error:
        return str(error)


texts = [text for text, end in JOB["completions"] if end]
ranks = (by_langchain, by_llama_index)
print(json.dumps({"ranked": [rank(texts) for rank in ranks], "failed": [fail(rank) for rank in ranks]}))
