"""The page's texts in Chinese. English texts are their own keys."""

from __future__ import annotations

from collections.abc import Callable

LANGUAGES = ("en", "zh")
CHINESE = {
    "Boxes": "设备",
    "Slots": "槽位",
    "Tokens/s": "token/秒",
    "Waiting": "等待中",
    "Fleet": "设备",
    "No worker is up.": "没有工作进程在运行。",
    "The queue's server does not answer.": "队列的服务器没有响应。",
    "This file is too large. The largest that the page takes has {} MB.": "文件太大。此页面最大接受 {} MB 的文件。",
    "A worker's record cannot be read.": "有一个工作进程的记录无法读取。",
    "No results are archived; the gateway's log says why.": "目前没有归档结果；原因见网关的日志。",
    "Ask about a file": "就文件提问",
    "Drop an image or a video here, or choose one": "把图片或视频拖到这里，或选择文件",
    "Question": "问题",
    "Describe it.": "请描述。",
    "Ask": "提问",
    "Close": "关闭",
    "Ask about this clip": "就此片段提问",
    "Ask its question again": "重新提问",
    "Captions": "描述",
    "Search": "搜索",
    "Words in a caption": "描述中的词",
    "Camera": "摄像机",
    "All cameras": "全部摄像机",
    "Time": "时间",
    "Any time": "不限时间",
    "Last hour": "最近一小时",
    "Last day": "最近一天",
    "Last week": "最近一周",
    "Only failed": "仅失败",
    "Older": "更早",
    "No captions yet.": "还没有描述。",
    "Nothing found.": "没有找到。",
    "no picture": "无图片",
    "failed": "失败",
    "Back": "返回",
    "Frames": "帧",
    "Details": "详细信息",
    "Log in": "登录",
    "Log out": "退出",
    "API key": "API 密钥",
    "This key may not see the page.": "此密钥无权查看页面。",
    "Log in with an API key of this gateway that may see the page.": "请使用有权查看页面的网关 API 密钥登录。",
    "Model": "模型",
    "Worker": "Worker",
    "Time to first token": "首个 token",
    "In all": "总计",
    "Tokens per second": "token/秒",
    "Source": "来源",
    "Metadata": "元数据",
    "Thought": "思考",
    "Skip to captions": "跳到描述",
    "new": "条新描述",
    "The frames are no longer kept.": "帧已不再保留。",
    "Disconnected; trying again.": "连接已断开，正在重试。",
    "Job": "任务",
}


def translator(language: str) -> Callable[[str], str]:
    """A function that gives a text in this language: "zh", else English."""
    return (lambda text: CHINESE.get(text, text)) if language == "zh" else (lambda text: text)


def language_of(accepted: str) -> str:
    """The language of a request's Accept-Language: "zh" if it comes before English, else "en"."""
    for part in accepted.lower().split(","):
        tag = part.partition(";")[0].strip().partition("-")[0]
        if tag in {"zh", "en"}:
            return tag
    return "en"
