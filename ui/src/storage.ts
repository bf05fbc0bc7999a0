// The browser's small stores, or memory where it lets a page have none.

type Kept = Pick<Storage, "getItem" | "setItem" | "removeItem">;

function open(name: "localStorage" | "sessionStorage"): Kept {
  try {
    const store = window[name];
    store.setItem("octavo.probe", "");
    store.removeItem("octavo.probe");
    return store;
  } catch {
    const memory = new Map<string, string>();
    return {
      getItem: (key) => memory.get(key) ?? null,
      setItem: (key, value) => void memory.set(key, value),
      removeItem: (key) => void memory.delete(key),
    };
  }
}

/** As long as the browser keeps it. */
export const lasting = open("localStorage");
/** As long as the tab. */
export const passing = open("sessionStorage");
