const TOOLS = { b: "brush", r: "rectangle", l: "blob", f: "fill", e: "eraser" };
const BRUSH = { "[": -5, "]": 5 };
const TYPING = "textarea, select, input:not([type=radio], [type=checkbox], [type=range], [type=file])";

/** Letters and digits work where nothing is typed; Ctrl+Enter everywhere. */
export function listenToKeys(actions) {
  addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const control = event.ctrlKey || event.metaKey;
    const typing = event.target.matches?.(TYPING);
    if (control && key === "enter") actions.generate();
    else if (typing || event.altKey) return;
    else if (control && key === "z") event.shiftKey ? actions.redo() : actions.undo();
    else if (control && key === "y") actions.redo();
    else if (control) return;
    else if (key in TOOLS) actions.tool(TOOLS[key]);
    else if (key in BRUSH) actions.brushSize(BRUSH[key]);
    else if (/^[1-9]$/.test(key)) actions.region(Number(key));
    else return;
    event.preventDefault();
  });
}
