// What a browser has to do by itself: keys, files that are dropped or pasted, copying, and staying at the end of an answer.
const typing = () => ["TEXTAREA", "INPUT"].includes(document.activeElement?.tagName);

function toComposer() {
  // On a small screen a keyboard would come up; and whoever types elsewhere goes on there.
  if (window.innerWidth > 700 && document.activeElement?.tagName !== "INPUT") document.querySelector(".composer textarea")?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    document.querySelector(".stop")?.click();
  } else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    const search = document.querySelector(".search input");
    search.focus(); // at once, as the next letter may come before the server has opened the drawer
    search.select();
    emitEvent("find");
  } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    emitEvent("fresh");
  } else if (event.key === "/" && !typing() && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    toComposer();
  }
});

addEventListener("popstate", () => emitEvent("back", location.search));

function takeFiles(files) {
  const uploader = document.querySelector(".uploader");
  if (!files.length || !uploader) return false;
  getElement(Number(uploader.id.slice(1))).$refs.qRef.addFiles(files);
  return true;
}

document.addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  takeFiles([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  // Beside a text there may be files that are none of its writer's doing.
  if (takeFiles([...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/")))) event.preventDefault();
});

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy"); // where the page is not reached by https or as localhost
    area.remove();
  }
  if (!button) return;
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1200);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.copy");
  if (button) copyText(button.closest(".code").querySelector("code").textContent, button);
  // Here, as a target does not outlive how answers are made safe.
  const link = event.target.closest?.(".text a[href]");
  if (link) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
});

// Pictures of a few pixels are shown as such, and large enough to be seen.
document.addEventListener(
  "load",
  ({ target }) => {
    if (target.classList?.contains("picture") && target.naturalWidth <= 64) target.classList.add("drawn");
  },
  true,
);

let atEnd = true;
document.addEventListener(
  "scroll",
  (event) => {
    const box = event.target;
    if (box.classList?.contains("talk")) atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  },
  true,
);
function toEnd(force) {
  const box = document.querySelector(".talk");
  if (force) atEnd = true;
  if (box && atEnd) box.scrollTop = box.scrollHeight;
}
new MutationObserver(() => toEnd(false)).observe(document, { childList: true, subtree: true });
