// Words of the captions' own pages, in both languages.
import { WORDS } from "./words.js";

Object.assign(WORDS.en, {
  spkTitle: "Speak into a room", spkHint: "Fill in the room and start the microphone. Words show here at once, whatever the network does.",
  spkDisplay: "Open the display", spkSync: "Room", spkEnable: "Send to the room", spkServer: "Server", spkName: "Your name", spkWorkers: "Requests at once",
  spkSent: "Sent", spkQueued: "Waiting", spkRetried: "Repeated", spkDropped: "Given up", spkErrors: "Failed requests", spkLag: "Back to this page", spkShown: "On the last display", spkOf: (n, of) => `${n} of ${of} displays`, spkExport: "Save counters and lags",
  spkStates: { idle: "not sending", needs: "not sending: the room is not filled in", ok: "room: ok", retrying: "room: retrying", offline: "room: offline, captions are kept", refused: "room: refused" },
  capTitle: "Captions", capLead: "Someone speaks; everyone in the room reads along.",
  capHint: "Make a room, give the passphrase to whoever speaks, and the display link to whoever reads.",
  capRoom: "Room", capPass: "Passphrase", capAgain: "New room", capCopy: "Copy", capCopyPass: "Copy passphrase",
  capDisplay: "Display, for screens, phones and OBS", capConsole: "Room console", capServer: "Server address, for the program that sends",
  capObs: "For OBS, take the display link with a transparent background", capOpen: "Open",
  capBadRoom: "A name of 1 to 64 letters, digits, _ and -",
  roomTitle: "Room console", roomAbout: "About this room", roomAsk: "See what is said in a room and who is there, and save it as subtitles. A new room is made on the page Captions.", roomWhich: "Which room?", roomGo: "Open", roomPresent: "Present", roomMessages: "Messages", roomKept: "Kept",
  roomWriters: "Senders", roomHeld: "Waiting for one before", roomActive: "Last message", roomPersist: "Outlives a restart", roomYes: "yes", roomNo: "no",
  roomExport: "Save as", roomWho: "Who is here", roomNobody: "nobody yet", roomLink: "Link for viewing", roomMake: "Make a link", roomMade: (h) => `good for ${h} hours, or until the room is forgotten`,
  roomWrong: "That is not this room's passphrase.", roomNone: "Nothing was said in this room yet. What is said appears here.", roomNever: "never",
  roomRoles: { display: "display", console: "console", speaker: "speaker" }, roomAnon: "viewer", roomAgo: (s) => `${s} s ago`,
  links: { connecting: "connecting", live: "connected", lost: "connection lost, coming back", refused: "this room needs its passphrase or a link for viewing" },
});
Object.assign(WORDS.zh, {
  spkTitle: "对房间说话", spkHint: "填写房间，然后打开麦克风。无论网络如何，文字都会立即显示在这里。",
  spkDisplay: "打开显示页", spkSync: "房间", spkEnable: "发送到房间", spkServer: "服务器", spkName: "你的名字", spkWorkers: "同时请求数",
  spkSent: "已发送", spkQueued: "等待", spkRetried: "重发", spkDropped: "放弃", spkErrors: "失败请求", spkLag: "回到本页", spkShown: "到最后一个显示页", spkOf: (n, of) => `${n}/${of} 个显示页`, spkExport: "保存计数与延迟",
  spkStates: { idle: "未发送", needs: "未发送：房间信息未填完", ok: "房间：正常", retrying: "房间：重试中", offline: "房间：离线，字幕已保留", refused: "房间：被拒绝" },
  capTitle: "字幕", capLead: "有人说话，房间里的人同时看到。",
  capHint: "建一个房间，把口令交给说话的人，把显示链接交给看的人。",
  capRoom: "房间", capPass: "口令", capAgain: "换一个", capCopy: "复制", capCopyPass: "复制口令",
  capDisplay: "显示页，用于屏幕、手机和 OBS", capConsole: "房间控制台", capServer: "服务器地址，填入发送程序",
  capObs: "用于 OBS 的显示链接，背景透明", capOpen: "打开",
  capBadRoom: "名称为 1 到 64 个字母、数字、_ 和 -",
  roomTitle: "房间控制台", roomAbout: "关于此房间", roomAsk: "查看房间里的话、在场的人，并另存为字幕文件。新房间在“字幕”页建立。", roomWhich: "哪个房间？", roomGo: "打开", roomPresent: "在场", roomMessages: "消息", roomKept: "保留",
  roomWriters: "发送者", roomHeld: "等待前一条", roomActive: "最近一条", roomPersist: "重启后保留", roomYes: "是", roomNo: "否",
  roomExport: "另存为", roomWho: "谁在这里", roomNobody: "还没有人", roomLink: "查看链接", roomMake: "生成链接", roomMade: (h) => `有效 ${h} 小时，或到房间被清除为止`,
  roomWrong: "口令不对。", roomNone: "这个房间里还没有人说话。说的话会出现在这里。", roomNever: "从未",
  roomRoles: { display: "显示页", console: "控制台", speaker: "说话者" }, roomAnon: "观看者", roomAgo: (s) => `${s} 秒前`,
  links: { connecting: "正在连接", live: "已连接", lost: "连接断开，正在恢复", refused: "查看此房间需要口令或查看链接" },
});
