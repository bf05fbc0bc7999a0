// Conversations in the browser's IndexedDB. Where there is none (some private windows), they last as long as the page.

import type { Conversation } from "./conversation.js";

export interface Head {
  id: string;
  title: string;
  updated: number;
}

// What the list shows stands apart: conversations can be large, and are read when they are opened.
const HEADS = "heads";
const BODIES = "conversations";

export class Store {
  private readonly memory = new Map<string, Conversation>();

  private constructor(private readonly db: IDBDatabase | null) {}

  static async open(): Promise<Store> {
    try {
      const request = indexedDB.open("octavo", 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore(HEADS, { keyPath: "id" });
        request.result.createObjectStore(BODIES, { keyPath: "id" });
      };
      return new Store(await result(request));
    } catch {
      return new Store(null);
    }
  }

  get isLasting(): boolean {
    return this.db !== null;
  }

  /** Latest first. */
  async heads(): Promise<Head[]> {
    const heads: Head[] = this.db
      ? await result(this.db.transaction(HEADS).objectStore(HEADS).getAll())
      : [...this.memory.values()].map(headOf);
    return heads.sort((a, b) => b.updated - a.updated);
  }

  async load(id: string): Promise<Conversation | undefined> {
    if (!this.db) return this.memory.get(id);
    return result(this.db.transaction(BODIES).objectStore(BODIES).get(id) as IDBRequest<Conversation | undefined>);
  }

  async save(conversation: Conversation): Promise<void> {
    if (!this.db) {
      this.memory.set(conversation.id, conversation);
      return;
    }
    const change = this.db.transaction([HEADS, BODIES], "readwrite");
    change.objectStore(HEADS).put(headOf(conversation));
    change.objectStore(BODIES).put(conversation);
    await done(change);
  }

  async remove(id: string): Promise<void> {
    this.memory.delete(id);
    if (!this.db) return;
    const change = this.db.transaction([HEADS, BODIES], "readwrite");
    change.objectStore(HEADS).delete(id);
    change.objectStore(BODIES).delete(id);
    await done(change);
  }
}

function headOf({ id, title, updated }: Conversation): Head {
  return { id, title, updated };
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function done(change: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    change.oncomplete = () => resolve();
    change.onabort = change.onerror = () => reject(change.error);
  });
}
