// What the notebook page says, added to the console's words.
import { WORDS } from "./words.js";

Object.assign(WORDS.en, {
  notebookTitle: "Notebook", addCell: "Add a cell", interrupt: "Interrupt", restart: "Restart", newNotebook: "New notebook",
  notebookHint: "Shift+Enter runs a cell. You may leave or reload this page: cells run on, and their output is here when you come back. Outputs are kept for an hour after a cell has ended, files until you delete them.",
  runCell: "Run", deleteCell: "Delete the cell", code: "Code", codeHint: "Python here, then Shift+Enter", cellOver: "cell ended", restartAsk: "Restart the kernel? Variables and imports are lost, files are kept.",
  confined: "confined, no network", confinedNet: "confined, with network", unconfined: "not confined: code may do all that this user may",
  cellWaiting: (n) => `waiting, place ${n}`, cellRunning: "running", interrupted: "interrupted", cellForgotten: "its output is no longer kept", cellFailed: "ended: ",
  notConnected: "The notebook cannot be reached: ", earlier: "… earlier lines are not shown here",
  stages: { ...WORDS.en.stages, accept: "accept", queue: "queue", kernel: "kernel start", dispatch: "dispatch", first: "first output", run: "run", flush: "flush", write: "write" },
});
Object.assign(WORDS.zh, {
  notebookTitle: "笔记本", addCell: "添加单元", interrupt: "中断", restart: "重启", newNotebook: "新笔记本",
  notebookHint: "按 Shift+Enter 运行单元。可以离开或刷新页面：单元继续运行，回来时输出仍在。单元结束后输出保留一小时，文件保留到您删除为止。",
  runCell: "运行", deleteCell: "删除单元", code: "代码", codeHint: "在此输入 Python，按 Shift+Enter 运行", cellOver: "单元已结束", restartAsk: "重启内核？变量和导入会丢失，文件保留。",
  confined: "已隔离，无网络", confinedNet: "已隔离，可访问网络", unconfined: "未隔离：代码拥有当前用户的全部权限",
  cellWaiting: (n) => `等待中，第 ${n} 位`, cellRunning: "运行中", interrupted: "已中断", cellForgotten: "输出已不再保留", cellFailed: "已结束：",
  notConnected: "无法连接笔记本：", earlier: "… 更早的行不在此显示",
  stages: { ...WORDS.zh.stages, accept: "接收", queue: "排队", kernel: "启动内核", dispatch: "派发", first: "首个输出", run: "运行", flush: "刷新", write: "写出" },
});
