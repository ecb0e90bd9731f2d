// Every word the console says, in both languages.
export const WORDS = {
  en: {
    title: "Talk to your model", lead: "Ask something. Hear the answer while it is still being written.",
    hint: "The words come from a language model on this machine, the voice from a speech model beside it. Nothing leaves the machine.",
    hintRemote: "The words come from the model server this gateway is set up for, the voice from the speech engine beside it.",
    promptLabel: "Your message", placeholder: "Type a sentence and press Enter", send: "Send", stop: "Stop",
    voice: "Speak the answer", gauges: "Right now", ahead: "of speech ahead", firstWord: "First word", firstSound: "First sound",
    queue: "Queue", stopped: "Stop to free slot", resumed: "Resumed", history: "Last answers",
    tries: ["Tell me about rivers in three sentences.", "Why does a dam need a quiet pool?", "Write two lines about rain."],
    live: "connected", lost: "connection lost, coming back", idle: "", gone: "The connection could not be restored. What had arrived is kept; send again to go on.",
    waiting: (n, s) => `place ${n}` + (s == null ? "" : `, about ${s} s`), next: "served at once",
    stoppedFoot: "stopped", cut: "This answer is incomplete: ", noVoice: "No voice is available, the text goes on without it.",
    truncated: "Older messages were left out so that the conversation fits the model.",
    loading: (stage, p) => `loading: ${stage}${p}`, none: "no worker", notReady: "The models are still loading. You can type already; the answer starts when they are ready.",
    synthetic: "synthetic", themes: { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" },
    stages: { locate: "finding files", fetch: "fetching", weights: "weights", allocate: "allocating", warm_up: "warming up", ready: "ready", failed: "failed" },
    kinds: { text: "language", speech: "voice", recognition: "recognition", image: "photos", kernel: "notebook" },
    viewTalk: "Talk", viewListen: "Listen", viewPhotos: "Photos", viewCaptions: "Captions", viewNotebook: "Notebook", viewPools: "Pools",
    keyTitle: "This gateway asks for a key", keyHint: "Your API key, fb_...", keyEnter: "Sign in", keyWrong: "This key is unknown, revoked or expired, or may not read.", keyLost: "The gateway does not answer.", keyOut: "Sign out",
    listenTitle: "Speech to text", listenLead: "Speak, or drop a recording. The words appear while you go on.",
    listenHint: "Grey words may still change. Nothing is lost when the connection drops: the page keeps what was not heard yet and sends it again.",
    record: "Speak", enough: "Stop", file: "Open a recording", copy: "Copy", saidFor: "Spoken", unheard: "of sound on its way",
    heardFor: "Heard", behind: "Behind your voice", finals: "Words", micDenied: "The microphone is not allowed. Allow it in the browser's address bar, or open a recording.",
    micNone: "This browser gives no microphone to this page. Open a recording, or use https or localhost.",
    queued: (n, s) => `Current queue: ${n}, please wait.` + (s == null ? "" : ` About ${s} s.`) + " You can go on speaking; nothing is lost.",
    refusals: { full: "Every place is taken.", away: "The server cannot be reached.", unopened: "The connection could not be opened." },
    again: (s) => (s > 0 ? ` Trying again by itself in ${s} s.` : " Trying again now.") + " You can go on speaking, or stop and come back later.",
    renewed: (s) => "The server lost the session, so a new one goes on. The words so far are kept" + (s > 0 ? `; up to ${s} s of speech before the break may be missing.` : "."),
    listenGone: "The connection could not be restored. The words that came are kept.", listenOver: "The server ended the session. The words that came are kept.",
    unheardFor: (s) => `${s} s of speech were not heard. `, beginAgain: "Press Speak to begin again.",
    stopLost: "The connection is lost. What was said is sent when it is back; press Stop again to give that up.",
    micAway: "The server cannot be reached, so the microphone stays off. Press Speak again when it is back.",
    fileCut: "The connection to the server was lost. The words that came are kept; open the recording again to hear it all.",
    fileGone: "the file is gone, was changed, or is a folder.", fileEmpty: "This file holds no sound.",
    fileRefused: (s) => `Every place is taken, so the recording was not taken. Open it again in about ${s} s.`,
    skip: "Skip to the page", copied: "copied", gatewayLost: "The gateway does not answer. This page tries again by itself.",
    absent: {
      text: "No language model is running here, so nothing can answer. Start Forebay with --engine text=llama.",
      speech: "No voice is running here: answers come as text alone. Start Forebay with --engine speech=voices.",
      recognition: "No recogniser is running here, so nothing can be heard. Start Forebay with --engine recognition=listener.",
      image: "No photo model is running here. Start Forebay with --engine image=waifu2x.",
      kernel: "No notebook kernel is running here. Start Forebay with --engine kernel=python.",
    },
    hereTitle: "Running here", hereMore: "all figures", hereReady: "ready", hereOff: "not running",
    hereBusy: (n, of) => `${n} of ${of} busy`, hereQueue: (n) => `${n} waiting`,
    hearing: "hearing", reading: "reading the recording", listenFailed: "This recording could not be read: ", listenCut: "The session ended: ",
  },
  zh: {
    title: "和你的模型对话", lead: "问一句话，答案还在写，就能听到。",
    hint: "文字来自这台机器上的语言模型，声音来自旁边的语音模型。没有任何内容离开这台机器。",
    hintRemote: "文字来自网关所连接的模型服务，声音来自旁边的语音引擎。",
    promptLabel: "你的消息", placeholder: "输入一句话，按回车发送", send: "发送", stop: "停止",
    voice: "朗读答案", gauges: "此刻", ahead: "语音缓冲", firstWord: "首字", firstSound: "首声",
    queue: "排队位置", stopped: "停止到释放", resumed: "续传次数", history: "最近几次",
    tries: ["Tell me about rivers in three sentences.", "Why does a dam need a quiet pool?", "用两句话介绍水库。"],
    live: "已连接", lost: "连接断开，正在恢复", idle: "", gone: "连接无法恢复。已收到的内容保留在此，重新发送即可继续。",
    waiting: (n, s) => `第 ${n} 位` + (s == null ? "" : `，约 ${s} 秒`), next: "无需等待",
    stoppedFoot: "已停止", cut: "这个答案不完整：", noVoice: "语音不可用，文字会继续。",
    truncated: "较早的消息已省略，以便对话适合模型的长度。",
    loading: (stage, p) => `加载中：${stage}${p}`, none: "没有工作进程", notReady: "模型还在加载。现在就可以输入，准备好后立即回答。",
    synthetic: "合成测试引擎", themes: { auto: "主题：跟随系统", light: "主题：浅色", dark: "主题：深色" },
    stages: { locate: "查找文件", fetch: "下载", weights: "权重", allocate: "分配内存", warm_up: "预热", ready: "就绪", failed: "失败" },
    kinds: { text: "语言", speech: "语音", recognition: "识别", image: "照片", kernel: "笔记本" },
    viewTalk: "对话", viewListen: "听写", viewPhotos: "照片", viewCaptions: "字幕", viewNotebook: "笔记本", viewPools: "资源池",
    keyTitle: "此网关需要密钥", keyHint: "你的 API 密钥，fb_...", keyEnter: "登录", keyWrong: "密钥无效、已撤销、已过期，或没有读取权限。", keyLost: "网关没有回应。", keyOut: "退出",
    listenTitle: "语音转文字", listenLead: "说话，或打开一段录音，文字会随着出现。",
    listenHint: "灰色文字还可能改变。连接断开也不会丢失：页面保留尚未送达的声音，恢复后重新发送。",
    record: "开始说话", enough: "停止", file: "打开录音", copy: "复制", saidFor: "已说", unheard: "尚未送达的声音",
    heardFor: "已识别", behind: "落后于声音", finals: "字数", micDenied: "没有麦克风权限。请在浏览器地址栏中允许，或打开一段录音。",
    micNone: "此页面无法使用麦克风。请打开一段录音，或使用 https 或 localhost。",
    queued: (n, s) => `当前排队：${n}，请稍候` + (s == null ? "。" : `，约 ${s} 秒。`) + "可以继续说，不会丢失。",
    refusals: { full: "名额已满。", away: "无法连接服务器。", unopened: "连接未能建立。" },
    again: (s) => (s > 0 ? `${s} 秒后自动重试。` : "正在重试。") + "可以继续说，也可以停止，稍后再来。",
    renewed: (s) => "服务器丢失了会话，已用新会话继续。之前的文字已保留" + (s > 0 ? `；中断前最多 ${s} 秒的语音可能缺失。` : "。"),
    listenGone: "连接无法恢复。已收到的文字已保留。", listenOver: "服务器结束了会话。已收到的文字已保留。",
    unheardFor: (s) => `有 ${s} 秒语音没有被识别。`, beginAgain: "按“开始说话”重新开始。",
    stopLost: "连接已断开。恢复后会发送已说的内容；再按一次“停止”即放弃。",
    micAway: "无法连接服务器，麦克风未打开。服务器恢复后请再按“开始说话”。",
    fileCut: "与服务器的连接已断开。已收到的文字已保留；要听完整，请重新打开这段录音。",
    fileGone: "文件已不存在、已被更改，或是一个文件夹。", fileEmpty: "这个文件里没有声音。",
    fileRefused: (s) => `名额已满，未接收这段录音。请约 ${s} 秒后再打开。`,
    skip: "跳到正文", copied: "已复制", gatewayLost: "网关没有回应，本页会自动重试。",
    absent: {
      text: "这里没有运行语言模型，无法回答。请用 --engine text=llama 启动 Forebay。",
      speech: "这里没有运行语音引擎，答案只有文字。请用 --engine speech=voices 启动 Forebay。",
      recognition: "这里没有运行识别引擎，无法听写。请用 --engine recognition=listener 启动 Forebay。",
      image: "这里没有运行照片模型。请用 --engine image=waifu2x 启动 Forebay。",
      kernel: "这里没有运行笔记本内核。请用 --engine kernel=python 启动 Forebay。",
    },
    hereTitle: "正在运行", hereMore: "全部数据", hereReady: "就绪", hereOff: "未运行",
    hereBusy: (n, of) => `${of} 个槽位中 ${n} 个在用`, hereQueue: (n) => `${n} 个等待`,
    hearing: "正在识别", reading: "正在读取录音", listenFailed: "无法读取这段录音：", listenCut: "会话已结束：",
  },
};

let current = pick();

function pick() {
  const asked = new URLSearchParams(location.search).get("lang") || localStorage.getItem("forebay.language");
  if (asked === "en" || asked === "zh") return asked;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export const language = () => current;
export const t = (key) => WORDS[current][key];

export function setLanguage(next) {
  current = next;
  localStorage.setItem("forebay.language", next);
  apply();
}

export function apply(root = document) {
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
}
